"""megatron-core's own faster ways compute the same; one that is not here costs a line."""

from pathlib import Path
from typing import Any, get_args

import pytest
from stage_runs import make_data, metrics, saved, write_stage
from trained_here import small, trained_in

from flmgrow.model.config import ModelConfig
from flmgrow.trainer.megatron.core import rope_utils
from flmgrow.trainer.megatron.switches import SWITCHES, switches_of
from flmgrow.trainer.stage.training import SwitchName

SIZES: dict[str, Any] = {
    "layers": 2, "hidden": 16, "ffn": 32, "kv_groups": 2, "queries_per_group": 1, "head_dim": 8,
    "vocab": 64, "max_positions": 32,
}  # fmt: skip


def test_a_stage_file_knows_them_all() -> None:
    assert get_args(SwitchName) == tuple(SWITCHES)


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"activation": "gelu"}, "activation_fusion", "it is there for swiglu, the model has gelu"),
        ({"positions": "xpos"}, "rope_fusion", "it is there for rope, the model has xpos"),
        ({}, "fp8", "it needs Transformer Engine's layers, the trainer's are torch's own"),
    ],
)
def test_what_cannot_be_had_says_why(changes: dict[str, Any], name: str, reason: str) -> None:
    found = switches_of([name, "cross_entropy_fusion", name], ModelConfig(**SIZES, **changes))
    assert found.left_out == {name: reason}
    assert found.taken == ("cross_entropy_fusion",)
    assert found.settings == {"cross_entropy_loss_fusion": True}


APEX = "gradient_accumulation_fusion"


class Machine:
    """What a switch may find: packages (``imports`` says how their import ends), and a GPU."""

    def __init__(self, patch: pytest.MonkeyPatch, installed: bool, gpu: bool) -> None:
        place = "flmgrow.trainer.megatron.switches."
        patch.setattr(place + "find_spec", lambda _: installed or None)
        patch.setattr(place + "import_module", self.import_module)
        patch.setattr(place + "torch.cuda.is_available", lambda: gpu)
        self.imports: Exception | None = None

    def import_module(self, _: str) -> None:
        if self.imports is not None:
            raise self.imports


def reason(name: str) -> str | None:
    return switches_of([name], ModelConfig(**SIZES)).left_out.get(name)


def test_a_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=False, gpu=True)
    assert reason(APEX) == "it needs Apex's CUDA extensions, not installed here"
    assert reason("rope_fusion") == "it needs Transformer Engine, not installed here"


def test_a_package_is_of_no_use_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=True, gpu=False)
    assert reason(APEX) == "it needs a GPU for Apex's CUDA extensions, none is here"
    assert reason("rope_fusion") == "it needs a GPU for Transformer Engine, none is here"


def test_a_package_that_is_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=True, gpu=True)
    assert reason(APEX) is None
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", None)
    assert reason("rope_fusion") == (
        "megatron-core finds no such kernel in the Transformer Engine that is installed here"
    )
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", print)
    found = switches_of(["rope_fusion", APEX], ModelConfig(**SIZES))
    assert found.taken == ("rope_fusion", APEX)
    assert found.settings == {"apply_rope_fusion": True, APEX: True}


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_package_that_is_broken_is_told(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    machine = Machine(monkeypatch, installed=True, gpu=True)
    machine.imports = error("libcudart.so.12: cannot open\nand more")
    wanted = "it needs Apex's CUDA extensions, which cannot be imported here: "
    assert reason(APEX) == wanted + "libcudart.so.12: cannot open"


@pytest.mark.slow
def test_the_steps_are_the_same_up_to_rounding(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "activation": "swiglu"}
    asked = {
        "none": [],
        "taken": ["cross_entropy_fusion", "activation_fusion"],
        "left out": ["fp8"],
    }
    told, stages = {}, {}
    for name, switches in asked.items():
        content = small(data, model=model, training={"switches": switches})
        told[name] = trained_in(tmp_path / name, content)
        stages[name] = write_stage(tmp_path / name, content)
    plain, fused = (metrics(stages[name]) for name in ("none", "taken"))
    losses = [record["loss"] for record in plain]
    # float32: sums of 257 exponentials in another order, through six steps
    assert [record["loss"] for record in fused] == pytest.approx(losses, rel=1e-5)
    assert told["none"].splitlines()[0].endswith("begins with fresh weights")
    assert (
        told["taken"]
        .splitlines()[0]
        .endswith("begins with fresh weights  with cross_entropy_fusion, activation_fusion")
    )
    note = "note: training.switches: fp8 is left out: it needs Transformer Engine's layers, the "
    assert f"{note}trainer's are torch's own" in told["left out"].splitlines()
    assert [record["loss"] for record in metrics(stages["left out"])] == losses
    weights = {path: found for path, found in saved(stages["none"], 6).items() if "__" in path}
    others = saved(stages["left out"], 6)
    assert weights
    assert all(others[path] == found for path, found in weights.items())
