"""Transformer Engine's layers compute the same, 8 bits nearly, in all models, layouts and growths.

There is no GPU here: a stand-in for Transformer Engine computes with torch, megatron-core's own
layers for it are the real ones (``tests/support/engine``).
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_rank
import pytest
from commands import accepted
from engine_rank import engine_environment, told_file
from in_place import stages
from stage_runs import NEWER, make_data, metrics, saved, write_stage
from trained_here import small, trained

from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.opening import open_checkpoint
from flmgrow.trainer.stage.changes import BEGAN_MASKED

pytestmark = pytest.mark.slow

ENGINE, EIGHT_BITS = "transformer_engine", "fp8"
STEPS = 6
ROUNDING = 1e-6
"""Relative, of float32's sums in another order, through a few steps; 8 bits differ by 1e-5 and
more."""
GPT: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
LLAMA = {
    **GPT, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 8,
    "normalization": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": True,
    "qk_norm": True, "tied": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "gpt": GPT,
    "llama": LLAMA,
    "paper": {
        **GPT, "positions": "xpos", "tied": False,
        "multipliers": {"mup_base_width": 16, "output": 2.0, "embedding": 3.0,
                        "attention_by_inverse_layer": True, "residual": 0.5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def stage(folder: Path, corpora: Path, switches: Sequence[str] = (), /, **changes: Any) -> Path:
    training = {"switches": list(switches), "steps": STEPS, **changes.pop("training", {})}
    content = small(corpora, **{"model": GPT, **changes}, training=training)
    content["checkpoint"] = {"every": STEPS // 2, **changes.get("checkpoint", {})}
    return write_stage(folder, content)


def train_on_engine(*stages: Path, ranks: int = 1, core: str = "") -> None:
    """Train stages where Transformer Engine is: one process for all, or ``ranks`` for each; with
    the megatron-core in the folder ``core``, if not the installed one.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    for each in [stages] if ranks == 1 else [(one,) for one in stages]:
        program = ["-W", "ignore", *(launch if ranks > 1 else []), engine_rank.__file__]
        words = [sys.executable, *program, *map(str, each)]
        done = subprocess.run(
            words, env=engine_environment(core), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]


def numbers(stage: Path) -> list[float]:
    """Return the losses and the norms of gradients of a stage."""
    found = metrics(stage)
    return [record[name] for name in ("loss", "grad_norm") for record in found]


def is_same(one: Path, other: Path, within: float = ROUNDING) -> bool:
    """Whether two stages took the same steps."""
    return numbers(one) == pytest.approx(numbers(other), rel=within)


def test_it_takes_the_steps_of_torchs_own_layers(data: Path, tmp_path: Path) -> None:
    plain = stage(tmp_path / "plain", data)
    engine = stage(tmp_path / "engine", data, [ENGINE])
    fp8 = stage(tmp_path / "fp8", data, [EIGHT_BITS])
    trained(plain)
    train_on_engine(engine, fp8)
    assert is_same(engine, plain)
    assert not is_same(fp8, plain, 1e-5)
    # A weight that stayed as it was rounded first would leave the loss near where it began.
    losses = [[record["loss"] for record in metrics(each)] for each in (fp8, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert abs(losses[1][-1] - losses[1][0]) > 1e-1
    for each, name in ((engine, ENGINE), (fp8, EIGHT_BITS)):
        assert told_file(each).read_text().splitlines()[0].endswith(f"  with {name}")
        assert saved(each, STEPS).keys() == saved(plain, STEPS).keys()


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "apart"), [("gpt", True), ("llama", False), ("llama", True), ("paper", False)]
)
def test_it_does_so_for_other_models(data: Path, tmp_path: Path, model: str, apart: bool) -> None:
    changes: dict[str, Any] = {
        "model": MODELS[model],
        "data": {"document_attention": apart},
    }
    fusions = ["activation_fusion"] if model == "llama" else []
    plain = stage(tmp_path / "plain", data, fusions, **changes)
    engine = stage(tmp_path / "engine", data, [ENGINE, *fusions], **changes)
    again = stage(tmp_path / "again", data, [EIGHT_BITS], training={"recompute": "full"}, **changes)
    once = stage(tmp_path / "once", data, [EIGHT_BITS], **changes)
    trained(plain)
    train_on_engine(engine, again, once)
    assert is_same(engine, plain)
    assert is_same(again, once, 0.0)
    assert not is_same(once, plain, 1e-5)


@pytest.mark.long
def test_in_16_bits_attention_is_its_own(data: Path, tmp_path: Path) -> None:
    of_both = {"model": LLAMA, "training": {"precision": "bfloat16"}}
    plain = stage(tmp_path / "plain", data, **of_both)
    engine = stage(tmp_path / "engine", data, [ENGINE], **of_both)
    trained(plain)
    train_on_engine(engine)
    assert is_same(engine, plain, 5e-3)
    assert not is_same(engine, plain, 1e-6)


@pytest.mark.long
@pytest.mark.skipif(not NEWER, reason="megatron-core 0.19 is not here")
def test_a_newer_megatron_core_takes_the_same_steps(data: Path, tmp_path: Path) -> None:
    for name in (ENGINE, EIGHT_BITS):
        older, newer = (stage(tmp_path / name / age, data, [name]) for age in ("older", "newer"))
        train_on_engine(older)
        train_on_engine(newer, core=NEWER)
        assert numbers(newer) == numbers(older)


@pytest.mark.long
@pytest.mark.parametrize("format", ["megatron", "torch_dist"])
def test_a_run_goes_on_with_it_and_without(data: Path, tmp_path: Path, format: str) -> None:
    kept = {"checkpoint": {"format": format}}
    whole = {
        name: stage(tmp_path / name, data, switches, **kept)
        for name, switches in {"plain": [], "engine": [ENGINE], "fp8": [EIGHT_BITS]}.items()
    }
    trained(whole["plain"])
    train_on_engine(whole["engine"], whole["fp8"])
    turns = {"plain": [ENGINE], "engine": [], "fp8": [EIGHT_BITS]}
    later = {
        name: stage(half(whole[name], tmp_path / f"{name} later"), data, turns[name], **kept)
        for name in turns
    }
    trained(later["engine"])
    train_on_engine(later["plain"], later["fp8"])
    for name in ("plain", "engine"):
        assert is_same(later[name], whole["plain"])
        assert "training.switches" in (later[name].parent / "changes.jsonl").read_text()
    assert saved(later["fp8"], STEPS) == saved(whole["fp8"], STEPS)


def half(whole: Path, folder: Path, begin: int = 0) -> Path:
    """Copy the folder of a stage that began at ``begin``, as it was when half of it was trained."""
    shutil.copytree(whole.parent, folder)
    checkpoints = folder / "checkpoints"
    shutil.rmtree(checkpoints / f"iter_{begin + STEPS:07d}")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(begin + STEPS // 2))
    return folder


@pytest.mark.long
def test_a_stop_behind_masks_changes_no_step(data: Path, tmp_path: Path) -> None:
    """They are open when it goes on; what an earlier version saved does not say that they were."""
    before, grown = stage(tmp_path / "before", data), tmp_path / "grown"
    trained(before)
    accepted("expand", before.parent / "checkpoints", grown, "--hidden-size", 64,
             "--num-attention-heads", 8, "--method", "mask", "--ramp-steps", 2)  # fmt: skip
    loaded = {"model": {}, "checkpoint": {"load": str(grown)}, "name": "large"}
    whole = stage(tmp_path / "whole", data, [EIGHT_BITS], **loaded)
    train_on_engine(whole)
    later, unknown = (
        stage(half(whole, tmp_path / name, STEPS), data, [EIGHT_BITS], **loaded)
        for name in ("later", "unknown")
    )
    saved_there = unknown.parent / "checkpoints" / f"iter_{STEPS + STEPS // 2:07d}"
    state = read_training_state(saved_there)
    assert state is not None
    assert not state.masks
    settings = {key: value for key, value in state.settings.items() if key != BEGAN_MASKED}
    (saved_there / TRAINING).write_bytes(replace(state, settings=settings).encode())
    train_on_engine(later, unknown)
    assert "goes on from step 9" in told_file(later).read_text()
    assert (
        "fp8 is left out: Transformer Engine's layers know no masks, and the stage began with"
        in (told_file(later).read_text())
    )
    assert numbers(later) == numbers(whole)
    assert saved(later, 2 * STEPS) == saved(whole, 2 * STEPS)
    assert not (later.parent / "changes.jsonl").exists()
    assert not is_same(unknown, whole, 1e-5)
    assert "training.switches taken is fp8 after step 9, was []" in told_file(unknown).read_text()


@pytest.mark.long
def test_what_it_has_trained_grows_and_trains_on(data: Path, tmp_path: Path) -> None:
    before = stage(tmp_path / "before", data, [EIGHT_BITS], model=MODELS["paper"])
    train_on_engine(before)
    trained_there, grown = before.parent / "checkpoints", tmp_path / "grown"
    accepted("expand", trained_there, grown, "--hidden-size", 64, "--num-attention-heads", 8,
             "--num-layers", 3, "--method", "mask", "--ramp-steps", 2)  # fmt: skip
    accepted("verify", trained_there, grown)
    loaded = {"model": {}, "checkpoint": {"load": str(grown)}, "name": "large"}
    plain = stage(tmp_path / "plain", data, **loaded)
    masked = stage(tmp_path / "masked", data, [ENGINE], **loaded)
    trained(plain)
    train_on_engine(masked)
    note = "transformer_engine is left out: Transformer Engine's layers know no masks"
    assert note in told_file(masked).read_text()
    assert numbers(masked) == numbers(plain)
    loaded = {**loaded, "name": "last", "checkpoint": {"load": str(plain.parent / "checkpoints")}}
    after = stage(tmp_path / "after", data, **loaded)
    engine = stage(tmp_path / "engine", data, [ENGINE], **loaded)
    trained(after)
    train_on_engine(engine)
    assert is_same(engine, after)
    with open_checkpoint(engine.parent / "checkpoints") as found:
        assert found.config.hidden == 64


@pytest.mark.long
def test_it_grows_in_memory(data: Path, tmp_path: Path) -> None:
    growth = {"hidden_size": 64, "num_attention_heads": 8, "num_layers": 3, "method": "zero"}
    model = {**GPT, "normalization": "rmsnorm", "tied": False}
    (_, plain), (_, engine), (_, fp8) = (
        stages(data, tmp_path / name, growth, model, training={"switches": switches})
        for name, switches in {"plain": [], "engine": [ENGINE], "fp8": [EIGHT_BITS]}.items()
    )
    trained(plain)
    train_on_engine(engine, fp8)
    assert is_same(engine, plain)
    assert not is_same(fp8, plain, 1e-5)
    (record,) = (found for found in map(json.loads, lines(fp8)) if "loss_before" in found)
    assert record["loss_after"] == pytest.approx(record["loss_before"], abs=1e-3)


def lines(stage: Path) -> list[str]:
    return (stage.parent / "metrics.jsonl").read_text().splitlines()


@pytest.mark.long
@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2},
        {"tp": 2, "sequence_parallel": True},
        {"pp": 2},
        {"dp": 2, "distributed_optimizer": True},
    ],
)
def test_ranks_take_the_steps_of_torchs_own_layers(
    data: Path, tmp_path: Path, layout: dict[str, Any]
) -> None:
    of_both = {"model": {**GPT, "hidden_size": 64}, "layout": layout}
    plain = stage(tmp_path / "plain", data, **of_both)
    engine = stage(tmp_path / "engine", data, [ENGINE], **of_both)
    fp8 = stage(tmp_path / "fp8", data, [EIGHT_BITS], **of_both)
    train_on_engine(plain, engine, fp8, ranks=2)
    assert is_same(engine, plain)
    assert not is_same(fp8, plain, 1e-5)
    losses = [[record["loss"] for record in metrics(each)] for each in (fp8, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
