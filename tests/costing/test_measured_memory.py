"""What ``flmgrow cost`` says that a device holds is what the trainer's ranks hold.

This file, run as a script, is a rank that counts: the bytes of its weights, gradients and states,
and of what autograd keeps for the backward pass, at its most.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from often import often
from stage_runs import MODEL, environment, make_data, stage_data, write_stage

from flmgrow.costing.memory import memory_of
from flmgrow.formats.layout.placements import padded_size
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.trainer.stage.file import layout_of, read_stage


class Kept:
    """The storages that autograd keeps, each counted once."""

    def __init__(self) -> None:
        self.uses: dict[int, int] = {}
        self.bytes = self.most = 0
        self.weights: set[int] = set()

    def pack(self, tensor: Any) -> Any:
        return Held(tensor, self)


class Held:
    """A tensor that is kept as long as this is."""

    def __init__(self, tensor: Any, kept: Kept) -> None:
        self.tensor, self.kept = tensor, kept
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if self.key in kept.weights:
            self.size = 0
        if not kept.uses.get(self.key):
            kept.bytes += self.size
            kept.most = max(kept.most, kept.bytes)
        kept.uses[self.key] = kept.uses.get(self.key, 0) + 1

    def __del__(self) -> None:
        self.kept.uses[self.key] -= 1
        if not self.kept.uses[self.key]:
            self.kept.bytes -= self.size


def run_as_script() -> int:
    """Run one rank of a stage file, and print what it holds."""
    import torch

    from flmgrow.trainer import __main__, components

    kept = Kept()
    models: list[Any] = []
    optimizers: list[Any] = []

    def counted_model(*given: Any, **settings: Any) -> Any:
        models.append(make_model(*given, **settings))
        kept.weights |= {each.untyped_storage().data_ptr() for each in models[-1].parameters()}
        return models[-1]

    def counted_optimizer(*given: Any) -> Any:
        optimizers.append(make_optimizer(*given))
        return optimizers[-1]

    used = vars(components)
    make_model, make_optimizer = used["DistributedDataParallel"], used["_optimizer"]
    used.update(DistributedDataParallel=counted_model, _optimizer=counted_optimizer)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        code = __main__.main()
    weights = {id(each): each for model in models for each in model.parameters()}
    found = {
        "rank": int(os.environ["RANK"]),
        "weights": sum(each.nbytes for each in weights.values()),
        "gradients": sum(buffer.grad_data.nbytes for model in models for buffer in model.buffers),
        "optimizer": state_bytes(optimizers[0], kept.weights),
        "activations": kept.most,
    }
    sys.stdout.write(f"HELD {json.dumps(found)}\n")
    return code


def state_bytes(optimizer: Any, weights: set[int]) -> int:
    """Return the bytes of the optimizer's states and masters, those of weights left out."""
    import torch

    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    total = 0
    for each in chained:
        inner = each.optimizer
        for parameter in (one for group in inner.param_groups for one in group["params"]):
            own = parameter.untyped_storage().data_ptr() not in weights
            total += parameter.nbytes if own else 0
            states = inner.state[parameter].values()
            total += sum(one.nbytes for one in states if torch.is_tensor(one) and one.numel() > 1)
    return total


# RMSNorm, which is one kernel on devices, keeps its input twice on a CPU.
GROUPED: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 128,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "ffn_hidden_size": 320,
    "activation": "swiglu",
    "normalization": "layernorm",
    "positions": "rope",
    "linear_bias": False,
    "tied": False,
}
PAPER: dict[str, Any] = {**MODEL, "num_layers": 8, "hidden_size": 128, "num_attention_heads": 8}


def measured(
    folder: Path, model: dict[str, Any], layout: dict[str, Any], training: dict[str, Any]
) -> tuple[PlannedStage, list[dict[str, int]]]:
    """Return a stage as it is planned, and what each of its ranks held in one step."""
    data = stage_data(
        make_data(folder / "data"), layout=layout, model=model,
        training={"steps": 1, "batch": 16, **training}, data={"sequence_length": 128},
    )  # fmt: skip
    file = write_stage(folder / "stage", data)
    stage = read_stage(file)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    own = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    done = subprocess.run(
        [*words, f"--nproc-per-node={stage.layout.world}", __file__, str(file)],
        env={**environment(), **own}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "HELD " in line]
    held = [json.loads(line.partition("HELD ")[2]) for line in lines]
    assert len(held) == stage.layout.world
    config = stage.model.config(257, stage.data.sequence_length)
    padded = padded_size(257, stage.model.make_vocab_size_divisible_by, stage.layout.tp)
    layout_ = layout_of(stage, config, padded)
    return PlannedStage(stage, config, layout_, padded, 0, stage.steps, "01-small"), held


def check(planned: PlannedStage, held: list[dict[str, int]]) -> None:
    """Insist that each rank holds what was foretold, of activations within 5 %."""
    foretold = memory_of(planned)
    for found in held:
        # Megatron's ranks count tensor ranks first, then replicas, then the pipeline's.
        rank = found["rank"] // (planned.stage.layout.tp * planned.stage.layout.dp)
        wanted = foretold[rank]
        assert found["weights"] == wanted.weights
        assert found["gradients"] == pytest.approx(wanted.gradients, rel=0.01)
        assert found["optimizer"] == pytest.approx(wanted.optimizer, rel=0.01)
        assert found["activations"] == pytest.approx(wanted.activations, rel=0.05)


@pytest.mark.slow
def test_one_rank_holds_what_was_foretold(tmp_path: Path) -> None:
    planned, held = measured(tmp_path, PAPER, {}, {"recompute": "selective"})
    check(planned, held)
    other = planned.stage.training.model_copy(update={"recompute": "full"})
    stage = planned.stage.model_copy(update={"training": other})
    with pytest.raises(AssertionError):
        check(replace(planned, stage=stage), held)


MANY: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no recomputation": (PAPER, {}, {}),
    "full recomputation": (PAPER, {}, {"recompute": "full"}),
    "groups and gates": (GROUPED, {}, {}),
    "norms of queries in groups": ({**GROUPED, "qk_norm": True}, {}, {}),
    "norms of queries": ({**GROUPED, "qk_norm": True, "num_query_groups": 8}, {}, {}),
    "tensor and pipeline": (PAPER, {"tp": 2, "pp": 2}, {}),
    "sequence parallel": (GROUPED, {"tp": 2, "sequence_parallel": True}, {}),
    "virtual pipeline": (PAPER, {"pp": 2, "vpp": 2}, {}),
    "uneven pipeline": (PAPER, {"pp": 2, "pipeline_layers": [5, 3]}, {}),
    "replicas": (PAPER, {"dp": 2, "distributed_optimizer": True}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", often(MANY, "tensor and pipeline", "virtual pipeline", "replicas"))
def test_every_rank_holds_what_was_foretold(name: str, tmp_path: Path) -> None:
    check(*measured(tmp_path, *MANY[name]))


LOWEST = {"layers": "0-2"}
INWARD, OUTWARD = ["query", "key", "value", "gate", "up"], ["attention_out", "down"]
SPARED: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "layers that gradients go through": (PAPER, {}, LOWEST),
    "layers that no gradient comes to": (PAPER, {}, [LOWEST, {"tensors": "embedding"}]),
    "ranks": (
        PAPER,
        {"pp": 2, "dp": 2, "distributed_optimizer": True},
        [LOWEST, {"layers": 5}, {"tensors": "embedding"}],
    ),
    "matrices that read hidden": (GROUPED, {}, {"tensors": INWARD}),
    "matrices, and a layer but for its last": (
        GROUPED,
        {},
        [
            {"layers": "0-5", "tensors": [*INWARD, *OUTWARD[:1]]},
            {"layers": "0-4", "tensors": OUTWARD[1:]},
            {"tensors": ["embedding", "head"]},
            *({"layers": "0-5", "tensors": f"{n}_norm.{k}"} for n in ("attention", "ffn")
              for k in ("gain", "bias")),
        ],
    ),
    "matrices on ranks": (
        GROUPED,
        {"tp": 2, "pp": 2, "sequence_parallel": True},
        [{"tensors": OUTWARD}, {"layers": "0-1"}, {"tensors": ["embedding", "final_norm.gain"]}],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    often(SPARED, "layers that no gradient comes to", "ranks",
          "matrices, and a layer but for its last"),
)  # fmt: skip
def test_what_is_frozen_has_no_gradients_and_no_states_and_keeps_less(
    tmp_path: Path, name: str
) -> None:
    model, layout, rules = SPARED[name]
    planned, held = measured(tmp_path, model, layout, {"freeze": rules})
    check(planned, held)
    training = planned.stage.training.model_copy(update={"freeze": None})
    stage = planned.stage.model_copy(update={"training": training})
    frozen, everything = memory_of(planned)[0], memory_of(replace(planned, stage=stage))[0]
    assert frozen.weights == everything.weights
    assert frozen.optimizer < 0.8 * everything.optimizer
    assert frozen.activations < 0.95 * everything.activations


if __name__ == "__main__":
    sys.exit(run_as_script())
