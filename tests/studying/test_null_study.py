"""Models that are really trained: those that differ by their seed alone do not differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage_runs import make_data
from studies import SCRATCH, study_data, write_study

from flmgrow.foresight import study
from flmgrow.studying.comparison import Pair, SeedVerdict, pairs
from flmgrow.studying.outcomes import Arm, Expense, MeasuredStudy, Outcome
from flmgrow.studying.statistics import LEVEL, holm

REPETITIONS, SEEDS = 20, 3
TINY = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def trained_study(folder: Path, content: dict[str, Any]) -> MeasuredStudy:
    """Carry out a study, and return what it measured."""
    return study(write_study(folder, content), folder / "out", parallel=2).measured


def compared(one: list[Outcome], other: list[Outcome]) -> Pair:
    """Compare trainings as two arms: the first of each is of one seed, and so on."""
    arms = tuple(Arm(name, "", (1,), 1, 1.0, False) for name in ("one", "other"))
    outcomes = tuple(
        replace(each, arm=arm.name, seed=seed)
        for arm, own in zip(arms, (one, other), strict=True)
        for seed, each in enumerate(own)
    )
    (found,) = pairs(MeasuredStudy(arms, outcomes, (Expense.TOKENS,)))
    return found


@pytest.mark.slow
@pytest.mark.long
def test_models_that_differ_by_their_seed_alone_do_not_differ(data: Path, tmp_path: Path) -> None:
    """Twenty null studies of two arms and three seeds, as one table at one level."""
    many = 2 * SEEDS * REPETITIONS
    content = study_data(data, seeds=list(range(1, many + 1)), sizes={"small": TINY}, decay=1.0)
    content["arms"] = {SCRATCH: {"size": "small", "tokens": 2560}}
    outcomes = trained_study(tmp_path, content).by_arm[SCRATCH]
    assert len({each.final.loss for each in outcomes}) == many  # seeds do differ
    starts = range(0, many, 2 * SEEDS)
    found = [
        compared(list(outcomes[n : n + SEEDS]), list(outcomes[n + SEEDS : n + 2 * SEEDS]))
        for n in starts
    ]
    p_values = [each.difference.estimate.p for each in found if each.difference.estimate]
    assert len(p_values) == REPETITIONS
    assert min(holm(p_values)) >= LEVEL
    assert min(p_values) < 0.5 < max(p_values)  # and not because nothing is ever found


@pytest.mark.slow
def test_models_that_were_trained_for_half_as_long_are_worse(data: Path, tmp_path: Path) -> None:
    content = study_data(data, seeds=[1, 2, 3], sizes={"small": TINY}, compare=["seconds"])
    content["arms"] = {
        "half": {"size": "small", "tokens": 2560}, "whole": {"size": "small", "tokens": 7680},
    }  # fmt: skip
    by_arm = trained_study(tmp_path, content).by_arm
    half, whole = ([replace(each, readings=(replace(each.final, tokens=1, step=1),))
                    for each in by_arm[name]] for name in ("half", "whole"))  # fmt: skip
    found = compared(half, whole)
    assert found.difference.verdict is SeedVerdict.WORSE
