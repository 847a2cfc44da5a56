"""The guard stops a run where it should, and a resumed run where an undisturbed one would."""

import math
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import DivergenceError
from flmgrow.trainer.metrics.guard import FEWEST, LossGuard

LOSSES = st.lists(st.floats(0, 20), max_size=60)
SPIKES = st.none() | st.floats(0.01, 20)
WINDOWS = st.integers(1, 40)


def stopped(guard: LossGuard, losses: Iterable[float], first: int = 0) -> int | None:
    """The step a guard stops at, if it does."""
    for step, loss in enumerate(losses, start=first):
        try:
            guard.check(step, loss, 1.0)
        except DivergenceError:
            return step
    return None


@given(losses=LOSSES, spike=SPIKES, window=WINDOWS)
def test_it_stops_at_the_first_loss_above_the_mean(
    losses: list[float], spike: float | None, window: int
) -> None:
    def too_high(step: int) -> bool:
        before = losses[max(0, step - window) : step]
        enough = len(before) >= min(FEWEST, window)
        return (
            spike is not None and enough and losses[step] > math.fsum(before) / len(before) + spike
        )

    wanted = next((step for step in range(len(losses)) if too_high(step)), None)
    assert stopped(LossGuard(spike, window, 8), losses) == wanted


@given(losses=LOSSES, spike=SPIKES, window=WINDOWS, at=st.integers(0, 60))
def test_a_resumed_run_stops_where_an_undisturbed_one_does(
    losses: list[float], spike: float | None, window: int, at: int
) -> None:
    whole = stopped(LossGuard(spike, window, 8), losses)
    first = LossGuard(spike, window, 8)
    begun = stopped(first, losses[:at])
    assert len(first.losses) <= window
    again = LossGuard(spike, window, 8, first.losses, first.batches)
    later = stopped(again, losses[at:], at)
    assert whole == (later if begun is None else begun)


@given(losses=LOSSES, window=WINDOWS, loss=st.floats(), norm=st.floats())
def test_what_is_not_finite_never_passes(
    losses: list[float], window: int, loss: float, norm: float
) -> None:
    guard = LossGuard(None, window, 8, losses)
    before = guard.losses
    if math.isfinite(loss) and math.isfinite(norm):
        guard.check(7, loss, norm)
        assert guard.losses == [*before, loss][-window:]
        return
    with pytest.raises(DivergenceError, match=r"^step 7: .*(nan|inf), wanted a finite number$"):
        guard.check(7, loss, norm)
    assert guard.losses == before


def test_the_message_has_all_numbers() -> None:
    guard = LossGuard(0.5, 20, 8, [3.0] * 5 + [2.0] * 15)
    guard.check(41, 2.7, 1.0)
    with pytest.raises(DivergenceError) as caught:
        guard.check(42, 3.5, 1.0)
    assert caught.value.message == (
        "step 42: loss 3.5, mean of the last 20 is 2.235, wanted at most 2.735"
    )
    assert caught.value.exit_code == 7
    assert guard.losses[-1] == 2.7
    with pytest.raises(DivergenceError, match=re.escape("step 43: gradient norm inf, wanted")):
        guard.check(43, 2.5, math.inf)


def test_the_first_losses_may_jump() -> None:
    falling = [11.0, 4.0, 9.0, 3.0, 8.0, 3.0, 7.0, 3.0, 6.0]
    assert stopped(LossGuard(0.5, 50, 8), falling) is None
    assert len(falling) == FEWEST - 1
    assert stopped(LossGuard(0.5, 50, 8), [*falling, 3.0, 60.0]) == 10


@pytest.mark.parametrize(("batch", "most"), [(64, 0.3), (128, 0.3), (16, 0.6), (4, 1.2)])
def test_losses_of_smaller_batches_may_stray_further(batch: int, most: float) -> None:
    """By the root of how much smaller they are: that is how a mean's error grows."""
    known = ([4.0] * 10, [64] * 10)
    assert stopped(LossGuard(0.3, 10, batch, *known), [4.0 + most - 1e-9]) is None
    assert stopped(LossGuard(0.3, 10, batch, *known), [4.0 + most + 1e-9]) == 0


def test_a_window_of_the_new_size_has_the_old_spike() -> None:
    guard = LossGuard(0.3, 10, 4, [4.0] * 10, [64] * 10)
    assert stopped(guard, [4.0] * 10) is None
    assert guard.batches == [4] * 10
    assert stopped(guard, [4.31]) == 0
