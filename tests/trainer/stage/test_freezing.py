"""What rules freeze, held against a look at every entry; and what they name that is not there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import Slice, make_layout, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.axes import Axis, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.frozen import Frozen
from flmgrow.model.tensors import logical_tensors
from flmgrow.trainer.stage.changes import changed_settings, settings_of
from flmgrow.trainer.stage.file import StageFile, stage_of
from flmgrow.trainer.stage.freezing import (
    Freeze,
    FreezeRule,
    frozen_of,
    frozen_slices,
    frozen_text,
)
from flmgrow.trainer.stage.model import ModelSection

PADDED = 24
OUTER = ["embedding", "final_norm.gain", "final_norm.bias"]
RULES: TypeAdapter[list[FreezeRule]] = TypeAdapter(Freeze)


def config(**changes: Any) -> ModelConfig:
    sizes = {"num_layers": 4, "hidden_size": 8, "num_attention_heads": 4, "ffn_hidden_size": 6}
    return ModelSection.model_validate({**sizes, "vocab_size": 20, **changes}).config(20, 16)


def frozen(rules: object, fresh: dict[Axis, list[int]] | None = None, **model: Any) -> Frozen:
    indices = {axis: np.array(found) for axis, found in (fresh or {}).items()}
    return frozen_of(RULES.validate_python(rules), config(**model), PADDED, indices)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"tensors": "querry"}, "the model has no tensor 'querry'"),
        ({"layers": "2-4"}, "layers: 4 is named, the model has 4, from 0 to 3"),
        ({"axes": {"ffn": 6}}, "axes.ffn: 6 is named, the model has 6"),
        ({"axes": {"wings": 1}}, "axes: there is no axis 'wings'"),
        ({"axes": {"layers": 1}}, "axes: there is no axis 'layers'"),
        ({"axes": {"position": 1}}, "no tensor of the model has a position axis"),
        ({"tensors": "embedding", "layers": 1}, "embedding has no layer axis"),
        ([{"layers": "0-3"}, {"tensors": OUTER}], "leaves nothing to train"),
        ("old", "is old, but nothing says what is new: the model has not grown"),
    ],
)
def test_what_is_named_must_be_there(rules: object, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        frozen(rules)
    assert raised.value.message.startswith(f"training.freeze: {told}")
    assert raised.value.hint


@pytest.mark.parametrize(
    "rules", ["new", {}, {"layers": []}, {"layers": "3-1"}, {"layers": "all"}, {"layers": -1}, []]
)
def test_what_is_no_rule_is_refused(rules: object) -> None:
    with pytest.raises(ValidationError):
        RULES.validate_python(rules)


def test_one_rule_and_one_index_stand_for_a_list() -> None:
    one, several = {"layers": 2}, [{"layers": ["2"], "tensors": None}]
    assert RULES.validate_python(one) == RULES.validate_python(several)
    assert RULES.validate_python("old") == RULES.validate_python([{"old": True}])


def spans(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """Return a rule that a model of 4 layers and 6 units of its FFN has all of."""
    rule: dict[str, Any] = {}
    if draw(st.booleans()):
        rule["layers"] = draw(spans(4))
    if draw(st.booleans()):
        rule["axes"] = {"ffn": draw(spans(6))}
    if draw(st.booleans()):
        names = ["up", "down"] if "axes" in rule else ["query", "up", "down", "attention_norm.gain"]
        rule["tensors"] = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return {**rule, "old": True} if draw(st.booleans()) or not rule else rule


FRESH = {Axis.FFN: [4, 5], Axis.LAYER: [1, 3]}


def is_frozen(rule: dict[str, Any], name: str, index: dict[str, int]) -> bool:
    """Whether a rule freezes an entry of a tensor, as the guide says it."""
    old = not any(index.get(str(axis)) in found for axis, found in FRESH.items())
    named = {"layer": rule["layers"]} if "layers" in rule else {}
    named |= rule.get("axes", {})
    return (
        (old or not rule.get("old"))
        and name in rule.get("tensors", [name])
        and all(index.get(axis) in found for axis, found in named.items())
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(rules(), min_size=1, max_size=3))
def test_an_entry_is_frozen_if_all_that_a_rule_names_holds_for_it(
    drawn: list[dict[str, Any]],
) -> None:
    model, found = config(), frozen(drawn, FRESH)
    tensors, sizes = logical_tensors(model), {**model.sizes, Axis.VOCAB: PADDED}
    whole: dict[Slice, bool] = {}
    for name, tensor in tensors.items():
        box = full_box(tensor.shape(sizes))
        entries = found.entries(tensor, box)
        wanted = np.zeros(box.shape, bool)
        for place in np.ndindex(box.shape):
            index = dict(zip(map(str, tensor.axes), place, strict=True))
            wanted[place] = any(is_frozen(rule, name, index) for rule in drawn)
        assert np.array_equal(entries, wanted), name
        assert found.count(tensor, box) == wanted.sum()
        assert not found.covers(tensor, box) or wanted.all()
        whole |= {
            (name, layer): bool((wanted if layer is None else wanted[layer]).all())
            for layer in (range(4) if tensor.layered else (None,))
        }
    still = frozen_slices(found, model, PADDED)
    assert all(whole[each] for each in still)
    if len(drawn) == 1:
        placed = placements(ROWS, tensors, sizes, make_layout(4))
        alike = {each.key: all(whole[part] for part in each.slices) for each in placed}
        for each in placed:
            beside = each.key.replace("weight", "bias") if "linear" in each.key else each.key
            wanted_still = alike[each.key] and alike.get(beside, True)
            assert (each.slices[0] in still) == wanted_still, each.key


def test_rows_that_pad_the_vocabulary_are_no_reason_to_train_a_table() -> None:
    found = frozen({"axes": {"vocab": "0-19"}, "tensors": ["embedding"]})
    assert ("embedding", None) in frozen_slices(found, config(), PADDED)
    less = frozen({"axes": {"vocab": "0-18"}, "tensors": ["embedding"]})
    assert not frozen_slices(less, config(), PADDED)


def stage_data(freeze: object, at: object, steps: int = 8) -> dict[str, Any]:
    return {
        "name": "one",
        "data": {"sequence_length": 32, "corpora": [{"path": "none"}]},
        "training": {"steps": steps, "batch": 8, "freeze": freeze, "unfreeze_at": at},
        "learning_rate": {"peak": 1e-3, "decay_tokens": 2048},
    }


@pytest.mark.parametrize(("at", "step"), [(3, 3), (0.5, 4), (0.01, 1), (0.55, 5)])
def test_a_share_is_of_the_stages_steps(at: float, step: int) -> None:
    steps = 8 if at != 0.55 else 9
    stage = StageFile.model_validate(stage_data({"layers": 0}, at, steps))
    assert stage.unfreeze_step == step


@pytest.mark.parametrize("at", [0, -1, 1.0, 0.0, 1e3, True, "0.5", float("nan"), 10**19])
def test_one_line_says_what_unfreezes(at: object) -> None:
    with pytest.raises(UsageError) as raised:
        stage_of(stage_data("old", at), Path("one.yaml"))
    wanted = "steps, from 1 on, or a share between 0 and 1"
    assert raised.value.message == f"one.yaml: training.unfreeze_at: found {at!r}, wanted {wanted}"


@pytest.mark.parametrize("rules", ["new", True, ["old", 3]])
def test_one_line_says_what_a_rule_is(rules: object) -> None:
    with pytest.raises(UsageError, match="wanted old, or a mapping of layers, tensors or axes"):
        stage_of(stage_data(rules, 1), Path("one.yaml"))


def test_a_longer_stage_tells_that_its_share_is_another_step() -> None:
    short, longer = (
        StageFile.model_validate(stage_data({"layers": 0}, 0.5, steps)) for steps in (8, 16)
    )
    changed = changed_settings(settings_of(longer), settings_of(short))
    assert changed == {"training.unfreeze_at": (4, 8)}
    fixed, later = (
        StageFile.model_validate(stage_data({"layers": 0}, 4, steps)) for steps in (8, 16)
    )
    assert not changed_settings(settings_of(later), settings_of(fixed))


@pytest.mark.parametrize(
    ("until", "told"),
    [
        (None, "do not train; "),
        (5, "do not train, until step 5; "),
        (6, "do not train, as the stage ends at step 6, and unfreeze_at is step 6; "),
        (9, "do not train, as the stage ends at step 6, and unfreeze_at is step 9; "),
    ],
)
def test_what_never_unfreezes_is_not_said_to(until: int | None, told: str) -> None:
    assert told in frozen_text(frozen({"layers": 0}), (), config(), until, 6)
