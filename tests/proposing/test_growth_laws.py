"""Laws of growth: planted constants are found again, and what nothing is known of is left out."""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from budgets import write_budget, write_stage_of
from hypothesis import given, settings
from hypothesis import strategies as st

import flmgrow
from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.prediction.law import prior
from flmgrow.prediction.points import RunPoint
from flmgrow.proposing.carrying import ReadStage
from flmgrow.proposing.growth_laws import Mixing, TwoStages
from flmgrow.proposing.two_stage import GrownRun, TwoStageLaw, drawn, fit, grown_of, intervals

LAW = prior()[0]
PLANTED = TwoStageLaw(log(40.0), 0.08, 0.3, 0.006)
FIRST, SECOND = (1e9, 4e9, 16e9), (2e9, 8e9, 32e9)
SIZES = (1e8, 3e8, 1e9)


def growths(
    planted: TwoStageLaw, noise: float = 0.0, first: Sequence[float] = FIRST
) -> list[GrownRun]:
    """Return runs that a law foretells, each of three sizes grown three times."""
    random = np.random.default_rng(5)
    found = []
    for number, (before, after) in enumerate((b, a) for b in first for a in SECOND):
        size = SIZES[number % len(SIZES)]
        legs = ReadStage(size, before), ReadStage(3 * size, after)
        loss = planted.loss(LAW, *legs) * float(np.exp(noise * random.standard_normal()))
        found.append(GrownRun(*legs, loss))
    return found


def test_planted_constants_are_found() -> None:
    """Of sizes that differ: what the law leaves of each is taken off."""
    found = fit(LAW, growths(PLANTED))
    assert found.log_a == pytest.approx(PLANTED.log_a, rel=1e-5)
    assert (found.a1, found.a2, found.a3) == pytest.approx(
        (PLANTED.a1, PLANTED.a2, PLANTED.a3), rel=1e-4
    )


@pytest.mark.parametrize("a3", [0.0, 0.006])
def test_saturation_is_told_from_none(a3: float) -> None:
    """The interval of a3 holds what was planted; it leaves out zero if, and only if, it was not."""
    planted = replace(PLANTED, a2=PLANTED.a2 - (0.006 - a3) * 22, a3=a3)
    low, high = intervals(drawn(LAW, [LAW] * 100, growths(planted, 2e-4)))["a3"]
    assert low <= a3 <= high
    assert (low > 0) == (a3 > 0)


def test_losses_that_follow_no_law_leave_the_exponents_open() -> None:
    """The negative control: the same losses, dealt out to other runs."""
    runs = growths(PLANTED, 2e-4)
    mixed = [replace(run, loss=other.loss) for run, other in zip(runs, [*runs[4:], *runs[:4]],
                                                                 strict=True)]  # fmt: skip
    honest, dealt = (intervals(drawn(LAW, [LAW] * 30, each))["a2"] for each in (runs, mixed))
    assert dealt[1] - dealt[0] > 20 * (honest[1] - honest[0])


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        (growths(PLANTED)[:5], "5 runs that grew, wanted at least 6 for L = A D1"),
        (growths(PLANTED, first=(1e9, 1e9, 1e9)), "cannot be told apart"),
        ([each for each in growths(PLANTED) if each.second.tokens == 2 * each.first.tokens] * 3,
         "cannot be told apart"),
    ],
)  # fmt: skip
def test_too_little_is_refused(runs: list[GrownRun], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        fit(LAW, runs)


@given(first=st.floats(1e6, 1e15), second=st.floats(1e6, 1e15), factor=st.floats(1.1, 100))
def test_a_growth_is_never_worse_than_what_it_began_with(
    first: float, second: float, factor: float
) -> None:
    legs = ReadStage(1e8, first), ReadStage(1e8 * factor, second)
    loss = PLANTED.loss(LAW, *legs)
    assert LAW.least(legs[1].parameters) <= loss <= LAW.loss(1e8, first)
    more = PLANTED.loss(LAW, legs[0], ReadStage(legs[1].parameters, 2 * second))
    assert more <= loss * (1 + 1e-12)


@settings(deadline=None)
@given(small=st.floats(1e6, 1e9), factor=st.floats(1.5, 9), read=st.floats(1e8, 1e11))
def test_laws_pull_apart(small: float, factor: float, read: float) -> None:
    """Mixing is at least as hopeful as carrying all over; a two-stage law knows its factors."""
    legs = [ReadStage(small, read), ReadStage(small * factor, read)]
    (mixed,) = Mixing().losses([LAW], legs) or [0.0]
    assert mixed == pytest.approx(LAW.loss(small * factor, 2 * read))
    two = TwoStages([PLANTED], (2.0, 4.0), "")
    assert (two.losses([LAW], legs) is None) == (not 2 / 1.5 <= factor <= 4 * 1.5)
    three = [*legs, ReadStage(2 * small * factor, read)]
    assert Mixing().losses([LAW], three) is two.losses([LAW], three) is None


def test_a_growth_is_read_off_the_ends_of_stages() -> None:
    ends = [RunPoint(1e6, 3e9, 3.0), RunPoint(4e6, 8e9, 2.5), RunPoint(9e6, 9e9, 2.4)]
    assert grown_of(ends) == GrownRun(ReadStage(1e6, 3e9), ReadStage(4e6, 5e9), 2.5)


def model(width: int) -> ModelConfig:
    return ModelConfig(layers=2, hidden=width, ffn=4 * width, kv_groups=4, queries_per_group=1,
                       head_dim=width // 4, vocab=257, max_positions=32)  # fmt: skip


def test_runs_that_grew_are_read_and_both_laws_shown(tmp_path: Path) -> None:
    """From run folders to a proposal: constants that were planted stand in what it says."""
    rows = [
        f"{n},{d},{LAW.loss(n, d)}" for n in (1e4, 3e4, 1e5, 3e5) for d in (1e8, 1e9, 1e10, 1e11)
    ]
    tmp_path.joinpath("points.csv").write_text("\n".join(["parameters,tokens,loss", *rows]))
    runs = []
    for before in (10**8, 10**9, 10**10):
        for after in (10**8, 10**9):
            run = tmp_path / f"run-{before}-{after}"
            legs = (
                ReadStage(parameter_count(model(32)), before),
                ReadStage(parameter_count(model(64)), after),
            )
            write_stage_of(run / "01-small", 32, LAW.loss(legs[0].parameters, before), before)
            write_stage_of(run / "02-large", 64, PLANTED.loss(LAW, *legs), before + after)
            runs.append(str(run))
    said = {"prior": None, "law": ["points.csv"], "grown": runs, "final_size": "10M"}
    found = flmgrow.propose(write_budget(tmp_path, **said))
    names = [each.growth.name for each in found.judged]
    assert names == ["carried", "two-stage", "mixing"]
    told = found.supposed[2]
    for wanted in ("a1 0.08 to 0.08", "a2 0.3 to 0.3", "a3 0.006 to 0.006", "as 6 growths by 3."):
        assert wanted in told, told
    used = flmgrow.propose(write_budget(tmp_path, **said, growth_law="two-stage"))
    assert [each.growth.name for each in used.judged] == ["two-stage", "carried", "mixing"]
    assert used.verdict.best[0].loss == pytest.approx(found.judged[1].verdict.best[0].loss)
    few = write_budget(tmp_path, **{**said, "grown": runs[:5]}, growth_law="two-stage")
    with pytest.raises(UsageError, match="growth_law: two-stage needs 6 runs that grew"):
        flmgrow.propose(few)


def test_constants_that_somebody_gives_are_named(tmp_path: Path) -> None:
    two = {"source": "a study of ours", "A": 40.0, "a1": 0.08, "a2": 0.3, "a3": 0.006,
           "factors": [2, 9]}  # fmt: skip
    found = flmgrow.propose(write_budget(tmp_path, final_size="20M", two_stage=two))
    assert found.supposed[2].endswith("a1 0.08, a2 0.3, a3 0.006, of a study of ours")
