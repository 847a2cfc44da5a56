"""What a run knows of its past comes back from its file to the last bit, or is refused by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.parts import Member
from flmgrow.formats.history.readings import PassedOver
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import (
    MAX_BYTES,
    Carried,
    TokenizerFacts,
    TrainingState,
    read_training_state,
)
from flmgrow.model.masks import AXES, Dimension, Mask
from flmgrow.storage.content_sum import SUM, sum_of, with_sum

COUNTS = st.integers(0, 1 << 62)


@st.composite
def masks(draw: st.DrawFn) -> dict[Dimension, Mask]:
    """Masks of some dimensions, of any indices, anywhere on their ramps."""
    indices = st.sets(st.integers(0, 200)).map(lambda found: np.array(sorted(found), np.int64))
    return {
        dimension: Mask(
            dimension,
            {axis: draw(indices) for axis in AXES[dimension]},
            draw(st.floats(0, 1)),
            draw(st.integers(1, 1 << 40)),
        )
        for dimension in draw(st.permutations(sorted(Dimension)).map(lambda all_: all_[:3]))
    }


def of_a_stage(state: TrainingState) -> TrainingState:
    """The state, at or after the begin of its stage."""
    return replace(state, iteration=max(state.iteration, state.stage_begin))


STATES = st.builds(
    TrainingState,
    iteration=COUNTS,
    stage=st.text(max_size=20),
    stage_begin=COUNTS,
    carried=st.builds(
        Carried,
        consumed_samples=COUNTS,
        data=st.text(max_size=20),
        tokens=COUNTS,
        flops=st.integers(0, 1 << 120),
        passed_over=st.lists(st.builds(PassedOver, begin=COUNTS, end=COUNTS), max_size=3),
        data_keys=st.none() | st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()),
        tokenizer=st.none()
        | st.builds(
            TokenizerFacts,
            kind=st.text(),
            sha256=st.text(),
            vocab_size=st.integers(1, 1 << 62),
            eod=COUNTS,
        ),
        losses=st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    ),
    masks=masks(),
    stage_tokens=st.none() | COUNTS,
    stage_batch=st.none() | st.integers(1, 1 << 62),
    settings=st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5) | COUNTS),
    family=st.lists(
        st.builds(
            Member,
            name=st.text(),
            parameters=st.integers(0, 1 << 50),
            iteration=st.none() | st.integers(0, 1 << 50),
            tokens=st.none() | st.integers(0, 1 << 60),
        )
    ).map(tuple),
).map(of_a_stage)


@given(STATES)
def test_it_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, state: TrainingState
) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / TRAINING).write_bytes(state.encode())
    found = read_training_state(folder)
    assert found is not None
    assert found.encode() == state.encode()
    assert (found.iteration, found.stage, found.stage_begin) == (
        state.iteration, state.stage, state.stage_begin,
    )  # fmt: skip
    assert found.carried == state.carried
    assert (found.stage_tokens, found.stage_batch) == (state.stage_tokens, state.stage_batch)
    assert found.settings == state.settings
    assert list(found.masks) == list(state.masks)  # masks that rise in turn rise in this order
    for name, mask in state.masks.items():
        assert (found.masks[name].value, found.masks[name].ramp_steps) == (
            mask.value, mask.ramp_steps,
        )  # fmt: skip
        for axis, indices in mask.fresh.items():
            assert found.masks[name].fresh[axis].tolist() == indices.tolist()


def test_other_checkpoints_have_none(tmp_path: Path) -> None:
    assert read_training_state(tmp_path) is None


def good() -> dict[str, Any]:
    fresh = {axis: np.arange(2, 4) for axis in AXES[Dimension.FFN]}
    state = TrainingState(
        iteration=7,
        stage="small",
        stage_begin=3,
        carried=Carried(consumed_samples=56, data="abc", tokens=1792, flops=10**30, losses=[3.5]),
        masks={Dimension.FFN: Mask(Dimension.FFN, fresh, 0.25, 8)},
        family=(Member(name="start", parameters=8, iteration=3),),
    )
    content: dict[str, Any] = json.loads(state.encode())
    assert content.pop(SUM) == sum_of(content)
    return content


def write(folder: Path, content: dict[str, Any]) -> None:
    """As who writes on purpose would: with a sum of what is there."""
    (folder / TRAINING).write_text(json.dumps(with_sum(content)))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "of a later version": ({"training_version": 4}, "version 4, wanted 3"),
    "no iteration": ({"iteration": None}, "iteration: "),
    "an iteration as text": ({"iteration": "7"}, "iteration: "),
    "an iteration below 0": ({"iteration": -1}, "iteration: "),
    "samples below 0": ({"carried": {"consumed_samples": -5}}, "carried.consumed_samples"),
    "too many samples": ({"carried": {"consumed_samples": 1 << 63}}, "carried.consumed_samples"),
    "an end below 0": (
        {"carried": {"tokenizer": {"kind": "bytes", "vocab_size": 257, "eod": -1}}},
        "carried.tokenizer.eod",
    ),
    "half a token": ({"carried": {"tokens": 0.5}}, "carried.tokens"),
    "an unknown dimension": ({"masks": {"height": {}}}, "height"),
    "a mask without ramp": ({"masks": {"ffn": {"value": 0.1, "fresh": {}}}}, "ffn mask"),
    "a mask above 1": (
        {"masks": {"ffn": {"value": 1.5, "ramp_steps": 4, "fresh": {"ffn": [[0, 1]]}}}},
        "ffn mask: value 1.5",
    ),
    "losses as text": ({"losses": ["low"]}, "losses.0"),
    "a family of names": ({"family": ["start"]}, "family.0"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    changes, message = DAMAGED[case]
    write(tmp_path, good() | changes)
    with pytest.raises(BadCheckpointError) as caught:
        read_training_state(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / TRAINING}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_bytes(content)
    with pytest.raises(BadCheckpointError, match=TRAINING):
        read_training_state(tmp_path)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / TRAINING).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadCheckpointError, match=f"wanted at most {MAX_BYTES}"):
        read_training_state(tmp_path)


NEWER = {"stage_tokens", "stage_batch", "settings", "files", "fresh", "lags"}
"""What files of earlier trainers lack."""


@pytest.mark.parametrize("key", sorted(good().keys() - NEWER))
def test_nothing_may_be_missing(key: str, tmp_path: Path) -> None:
    content = good()
    del content[key]
    write(tmp_path, content)
    with pytest.raises(BadCheckpointError, match=f"{key}: is not given"):
        read_training_state(tmp_path)


def test_earlier_versions_told_no_tokenizer() -> None:
    found = Carried.model_validate({"consumed_samples": 3, "data": "d", "tokens": 9, "flops": 1})
    assert (found.tokenizer, found.data_keys) == (None, None)
    assert found.readings == []


def test_an_older_file_has_its_losses_beside_what_goes_on(tmp_path: Path) -> None:
    content = {key: value for key, value in good().items() if key not in NEWER}
    for key in ("losses", "loss_batches"):
        del content["carried"][key]
    older = content | {"losses": [3.5, 2.25], "training_version": 1}
    (tmp_path / TRAINING).write_text(json.dumps(older))
    found = read_training_state(tmp_path)
    assert found is not None
    assert not found.has_sum
    assert (found.carried.losses, found.carried.loss_batches) == ([3.5, 2.25], [])
    assert (found.stage_tokens, found.stage_batch, found.settings) == (None, None, {})


def test_losses_have_as_many_batches(tmp_path: Path) -> None:
    content = good()
    content["carried"] |= {"losses": [3.5, 2.25], "loss_batches": [8]}
    write(tmp_path, content)
    with pytest.raises(BadCheckpointError, match=r"carried: .*2 losses of 1 batches"):
        read_training_state(tmp_path)


def test_a_changed_character_is_told(tmp_path: Path) -> None:
    """Any digit: what was read, how far masks are open, where data goes on."""
    write(tmp_path, good())
    text = (tmp_path / TRAINING).read_text()
    assert read_training_state(tmp_path) is not None
    digits = [match.start() for match in re.finditer("[0-9]", text)]
    assert len(digits) > 50
    for place in digits:
        other = str((int(text[place]) + 1) % 10)
        (tmp_path / TRAINING).write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(BadCheckpointError, match=TRAINING):
            read_training_state(tmp_path)


def test_a_file_of_this_version_has_a_sum(tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text(json.dumps(good()))
    with pytest.raises(BadCheckpointError, match="its own sum does not match"):
        read_training_state(tmp_path)
