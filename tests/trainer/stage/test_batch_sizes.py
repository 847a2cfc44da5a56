"""A batch that grows: as Megatron-LM's does, counted alike forwards and in closed form."""

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stage_runs import stage_data

from flmgrow.trainer.stage.batch_sizes import BatchSizes
from flmgrow.trainer.stage.clock import (
    StageProgress,
    clock_of,
    steps_in_all,
    steps_left,
    trained_by,
)
from flmgrow.trainer.stage.file import StageFile

with warnings.catch_warnings(action="ignore"):  # megatron-core's, of what a CPU lacks
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    import flmgrow.trainer.megatron.core  # noqa: F401 (makes torch ready for it)

LENGTH = 32


@st.composite
def ramps(draw: st.DrawFn) -> BatchSizes:
    start, increment = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    end = start + increment * draw(st.integers(1, 9))
    return BatchSizes(end, start, increment, draw(st.integers(1, 3000)))


def forwards(sizes: BatchSizes, steps: int) -> list[int]:
    """The samples that the stage has had before each step and after the last."""
    found = [0]
    for _ in range(steps):
        found.append(found[-1] + sizes.at(found[-1]))
    return found


@given(sizes=ramps(), consumed=st.integers(0, 4000))
def test_batches_are_megatrons(sizes: BatchSizes, consumed: int) -> None:
    """But where Megatron-LM divides in floating point, and a part ends between two samples."""
    parts = (sizes.end - sizes.start) // sizes.increment
    ramp = (sizes.start, sizes.increment, sizes.samples)
    theirs = RampupBatchsizeNumMicroBatchesCalculator(sizes.end, 1, 1, False, 0, *ramp)
    theirs.update(consumed, consistency_check=False)
    exact = Fraction(consumed * parts, sizes.samples)
    if consumed <= sizes.samples and int(consumed / (sizes.samples / parts)) == int(exact):
        assert theirs.current_global_batch_size == sizes.at(consumed)
    if consumed > sizes.samples:
        assert theirs.current_global_batch_size == sizes.at(consumed) == sizes.end


@given(sizes=ramps(), begin=st.integers(0, 40), steps=st.integers(0, 120))
def test_counted_at_once_as_step_by_step(sizes: BatchSizes, begin: int, steps: int) -> None:
    places = forwards(sizes, begin + steps)
    assert sizes.after(begin + steps) == places[-1]
    assert sizes.after(steps, places[begin]) == places[-1]
    assert {sizes.at(place) for place in places} <= set(sizes.all())
    assert sizes.steps_until(Fraction(places[-1]), places[begin]) == steps


@given(sizes=ramps(), samples=st.integers(0, 4000))
def test_a_length_ends_with_the_nearest_step(sizes: BatchSizes, samples: int) -> None:
    steps = sizes.steps_until(Fraction(samples))
    places = forwards(sizes, steps + 1)
    found = abs(places[steps] - samples)
    assert found <= abs(places[steps + 1] - samples)
    assert steps == 0 or found <= abs(places[steps - 1] - samples)


@given(batch=st.integers(1, 300), steps=st.integers(0, 500), samples=st.integers(0, 10**6))
def test_without_a_ramp_it_is_a_product(batch: int, steps: int, samples: int) -> None:
    sizes = BatchSizes(batch)
    assert (sizes.at(samples), [*sizes.all()]) == (batch, [batch])
    assert sizes.after(steps, samples) == samples + steps * batch
    assert sizes.steps_until(Fraction(samples)) == (2 * samples + batch) // (2 * batch)


def stage(**changes: Any) -> StageFile:
    return StageFile.model_validate(stage_data(Path("unread"), **changes))


RAMPED = {"batch": 16, "micro_batch": 2, "batch_ramp": [4, 4, 48]}
"""4 samples for 4 steps, 8 for 2, 12 for 2 (up to 56), then 16."""


def test_a_stage_of_tokens_has_more_steps() -> None:
    found = stage(training={**RAMPED, "steps": None, "tokens": (56 + 2 * 16) * LENGTH})
    assert (found.steps, found.tokens_after(found.steps)) == (10, 88 * LENGTH)
    plain = stage(training={**RAMPED, "steps": None, "tokens": 88 * LENGTH, "batch_ramp": None})
    assert plain.steps == 6
    # Settings that were changed after 5 steps: what is left is counted from there.
    assert steps_in_all(found, StageProgress(5, 24 * LENGTH)) == 10
    assert steps_left(found, StageProgress(20, 88 * LENGTH)) == 0


@pytest.mark.parametrize(("steps", "last"), [(4, 4), (5, 8), (8, 12), (9, 16)])
def test_the_last_batch_may_be_smaller_than_the_ramps_end(steps: int, last: int) -> None:
    assert stage(training={**RAMPED, "steps": steps}).last_batch == last


def test_a_long_ramp_is_not_listed_to_be_checked() -> None:
    ramp = {"batch": 10**9, "batch_ramp": [2, 2, 10**9], "micro_batch": 2, "steps": 1}
    assert stage(training=ramp).last_batch == 2
    with pytest.raises(ValidationError, match="a batch of 3 does not divide"):
        stage(training={**ramp, "batch_ramp": [2, 1, 10**9]})


def test_the_rate_follows_samples() -> None:
    rate = {"peak": 1e-3, "warmup_samples": 16, "decay_tokens": None}
    found = stage(training={**RAMPED, "steps": 10}, learning_rate=rate)
    assert (found.warmup_steps, found.decay_steps) == (4, 10)
    clock = clock_of(found, StageProgress(5, 24 * LENGTH, 4))
    assert (clock.position, clock.step, clock.warmup, clock.decay) == (24, None, 16, 88)
    assert clock_of(found, StageProgress()).decay == 88


def test_a_warm_up_may_be_a_share() -> None:
    rate = {"peak": 1e-3, "warmup_samples": 0, "warmup_share": 0.02, "decay_tokens": None}
    training = {"steps": 1000, "batch": 16}
    found = stage(training=training, learning_rate=rate)
    assert (found.warmup_samples, found.warmup_steps) == (320, 20)
    assert clock_of(found, StageProgress()).warmup == 320
    # Of the way to the floor, as Megatron-LM's --lr-warmup-fraction, wherever the stage ends.
    later = stage(training=training, learning_rate={**rate, "decay_tokens": 32000 * LENGTH})
    assert clock_of(later, StageProgress()).warmup == later.warmup_samples == 640
    with pytest.raises(ValidationError, match="either warmup_samples or warmup_share"):
        stage(learning_rate={**rate, "warmup_samples": 8})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "beyond the batch": ({"batch_ramp": [4, 5, 48]}, "from 4 by 5 does not lead to a batch of 16"),
    "not smaller": ({"batch_ramp": [16, 4, 48]}, "from 16 by 4 does not lead to a batch of 16"),
    "uneven": (
        {"batch_ramp": [1, 1, 48]},
        "training.batch_ramp: a batch of 1 does not divide into micro-batches of 2",
    ),
    "two numbers": ({"batch_ramp": [4, 4]}, "at least 3 items"),
    "nothing": ({"batch_ramp": [4, 0, 48]}, "greater than or equal to 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_ramp_that_cannot_be_is_refused(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ValidationError, match=message):
        stage(training={**RAMPED, **changes})


def test_what_was_trained_on_follows_from_a_place() -> None:
    found = stage(training={**RAMPED, "steps": 10})
    trained = trained_by(found, StageProgress(5, 24 * LENGTH), 105)
    assert [trained(at) for at in (105, 106, 108, 110)] == [24, 32, 56, 88]
