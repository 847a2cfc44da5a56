"""megatron-core's own faster ways compute the same; one that is not here costs a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from packaging.version import Version
from stage_runs import make_data, metrics, saved, write_stage
from trained_here import small, trained_in

from flmgrow.formats.history.training_state import Carried
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.trainer.checkpoint.begin import Begin
from flmgrow.trainer.megatron.core import rope_utils
from flmgrow.trainer.megatron.switches import SWITCHES, Computed, Switch, Switches, switches_of
from flmgrow.trainer.ranks import agreement
from flmgrow.trainer.stage.changes import BEGAN_MASKED, CHANGES, TAKEN, changed_settings
from flmgrow.trainer.stage.training import SwitchName

SIZES: dict[str, Any] = {
    "layers": 2, "hidden": 16, "ffn": 32, "kv_groups": 2, "queries_per_group": 1, "head_dim": 8,
    "vocab": 64, "max_positions": 32,
}  # fmt: skip


def of(names: Sequence[str], **changes: Any) -> Switches:
    return switches_of(names, Computed(ModelConfig(**{**SIZES, **changes})))


def test_a_stage_file_knows_them_all() -> None:
    assert get_args(SwitchName) == tuple(SWITCHES)


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"activation": "gelu"}, "activation_fusion", "it is there for swiglu, the model has gelu"),
        ({"positions": "xpos"}, "rope_fusion", "it is there for rope, the model has xpos"),
        ({}, "fp8", "it needs Transformer Engine, not installed here"),
        ({"hidden": 24}, "fp8", "it multiplies what has multiples of 16: the hidden width is 24"),
        ({"ffn": 40}, "fp8", "it multiplies what has multiples of 16: the width of the FFN is 40"),
        ({"kv_groups": 3}, "fp8", "it multiplies what has multiples of 16: the heads' width is 24"),
    ],
)
def test_what_cannot_be_had_says_why(changes: dict[str, Any], name: str, reason: str) -> None:
    found = of([name, "cross_entropy_fusion", name], **changes)
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
    return of([name]).left_out.get(name)


def test_a_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=False, gpu=True)
    assert reason(APEX) == "it needs Apex's CUDA extensions, not installed here"
    for name in ("rope_fusion", "transformer_engine", "fp8"):
        assert reason(name) == "it needs Transformer Engine, not installed here"


def test_a_package_is_of_no_use_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=True, gpu=False)
    assert reason(APEX) == "it needs a GPU for Apex's CUDA extensions, none is here"
    for name in ("rope_fusion", "transformer_engine", "fp8"):
        assert reason(name) == "it needs a GPU for Transformer Engine, none is here"


def test_a_package_that_is_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=True, gpu=True)
    assert reason(APEX) is None
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", None)
    assert reason("rope_fusion") == (
        "megatron-core finds no such kernel in the Transformer Engine that is installed here"
    )
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", print)
    found = of(["rope_fusion", APEX])
    assert found.taken == ("rope_fusion", APEX)
    assert found.settings == {"apply_rope_fusion": True, APEX: True}


def test_layers_and_eight_bits_want_a_later_package_and_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Machine(monkeypatch, installed=True, gpu=True)
    place = "flmgrow.trainer.megatron.switches."
    found = {"version": Version("1.9.0"), "gpu": (8, 0)}
    assert reason("fp8") == "megatron-core cannot use the Transformer Engine installed here"
    monkeypatch.setattr(place + "HAVE_TE", True)
    monkeypatch.setattr(place + "get_te_version", lambda: found["version"])
    monkeypatch.setattr(place + "torch.cuda.get_device_capability", lambda: found["gpu"])
    for name in ("transformer_engine", "fp8"):
        assert reason(name) == "it needs Transformer Engine 1.10 or later, 1.9.0 is here"
    found["version"] = Version("1.10.0")
    assert reason("transformer_engine") is None
    found["version"] = Version("2.1.0")
    assert reason("fp8") == "it needs Transformer Engine 2.2 or later, 2.1.0 is here"
    found["version"] = Version("2.2.0")
    assert reason("fp8") == (
        "it needs a GPU of compute capability 8.9 or above, here is one of 8.0"
    )
    found["gpu"] = (8, 9)
    assert of(["fp8"]).settings == {
        "transformer_impl": "transformer_engine", "fp8": "hybrid", "fp8_recipe": "tensorwise",
    }  # fmt: skip


def test_where_masks_are_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, installed=True, gpu=True)
    found = switches_of(["transformer_engine"], Computed(ModelConfig(**SIZES), began_masked=True))
    wanted = "Transformer Engine's layers know no masks, and the stage began with masks"
    assert found.left_out == {"transformer_engine": wanted}


@pytest.mark.parametrize(
    ("value", "resumed", "record", "wanted"),
    [
        (0.5, False, {}, True),
        (None, False, {}, False),
        (None, False, {BEGAN_MASKED: True}, False),  # of steps that are taken anew
        (None, True, {BEGAN_MASKED: True}, True),
        (0.5, True, {BEGAN_MASKED: True}, True),
        (None, True, {BEGAN_MASKED: False}, False),
        (None, True, {}, False),  # an earlier version saved it
        (0.5, True, {}, True),
    ],
)
def test_a_stage_goes_on_as_the_masks_of_its_begin_decide(
    value: float | None, resumed: bool, record: dict[str, Any], wanted: bool
) -> None:
    fresh = {Axis.FFN: np.array([3])}
    masks = {} if value is None else {Dimension.FFN: Mask(Dimension.FFN, fresh, value)}
    assert Begin(None, resumed, 9, 6, Carried(), masks, settings=record).began_masked is wanted


def test_what_was_taken_is_compared_where_it_is_known() -> None:
    asked = {"training.switches": ["fp8"]}
    before, now = (asked | {TAKEN: taken, BEGAN_MASKED: False} for taken in (["fp8"], []))
    assert changed_settings(now, before) == {TAKEN: (["fp8"], [])}
    assert changed_settings(now, now) == {}
    assert changed_settings(now, asked) == {}  # an earlier version saved it
    assert changed_settings(asked, now) == {}


def test_what_a_rank_multiplies_counts() -> None:
    """A rank of two has half of what is cut, of the positions, too, if they are."""
    config = ModelConfig(**{**SIZES, "ffn": 48})
    for computed, wanted in (
        (Computed(config, tp=2), "the width of the FFN of a rank is 24"),
        (Computed(config, positions=24), "sequence_length x micro_batch is 24"),
    ):
        found = switches_of(["fp8"], computed).left_out["fp8"]
        assert found == f"it multiplies what has multiples of 16: {wanted}"


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_package_that_is_broken_is_told(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    machine = Machine(monkeypatch, installed=True, gpu=True)
    machine.imports = error("libcudart.so.12: cannot open\nand more")
    wanted = "it needs Apex's CUDA extensions, which cannot be imported here: "
    assert reason(APEX) == wanted + "libcudart.so.12: cannot open"


TAKEN_HERE = "what is taken of training.switches"


@pytest.mark.parametrize("there", [(), ("cross_entropy_fusion",)])
def test_ranks_take_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    """Another rank, which has packages of its own, is what this one hears of it."""
    gathered = agreement.gathered

    def with_another_rank(own: object) -> list[Any]:
        met = gathered(own)
        if not isinstance(own, dict) or TAKEN_HERE not in own:
            return met
        return [*met, {**own, TAKEN_HERE: there}]

    monkeypatch.setattr(agreement, "gathered", with_another_rank)
    data = make_data(tmp_path / "data")
    content = small(data, training={"switches": ["cross_entropy_fusion"], "steps": 1})
    told = trained_in(tmp_path / "run", content, expect=0 if there else 2)
    refusal = f"rank 1: {TAKEN_HERE} is (), rank 0 has ('cross_entropy_fusion',)"
    assert (f"error: {refusal}" in told) is not bool(there)
    assert ("hint: all ranks need the same files and packages" in told) is not bool(there)
    assert bool(list((tmp_path / "run").rglob("iter_*"))) is bool(there)


FUSION = "cross_entropy_fusion"


@pytest.mark.slow
def test_a_run_that_goes_on_with_others_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    content = small(data, training={"switches": [FUSION], "steps": 2}, checkpoint={"every": 1})
    trained_in(tmp_path, content)
    tracker, told = tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt", []
    gone = {**SWITCHES, FUSION: Switch({}, lambda _: "it is gone")}
    for table in (SWITCHES, gone, gone, SWITCHES):
        monkeypatch.setattr("flmgrow.trainer.megatron.switches.SWITCHES", table)
        tracker.write_text("1")
        told.append(trained_in(tmp_path, content))
    notes = [[line for line in each.splitlines() if "note" in line] for each in told]
    other = f"note: {TAKEN} is [] after step 1, was {FUSION}"
    without = [f"note: training.switches: {FUSION} is left out: it is gone", other]
    assert notes == [[], without, without, []]
    (change,) = map(json.loads, (tmp_path / CHANGES).read_text().splitlines())
    wanted = {"step": 1, "key": TAKEN, "before": [FUSION], "after": []}
    assert change.items() >= wanted.items()


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
    note = (
        "note: training.switches: fp8 is left out: it needs Transformer Engine, not installed here"
    )
    assert note in told["left out"].splitlines()
    assert [record["loss"] for record in metrics(stages["left out"])] == losses
    weights = {path: found for path, found in saved(stages["none"], 6).items() if "__" in path}
    others = saved(stages["left out"], 6)
    assert weights
    assert all(others[path] == found for path, found in weights.items())
