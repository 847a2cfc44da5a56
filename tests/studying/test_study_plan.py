"""Arms as schedules, their common legs, and what a study's fairness finds, before any training."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT
from studies import MASK, SCRATCH, study_data, write_study

from flmgrow.errors import UsageError
from flmgrow.studying.fairness import held_and_findings
from flmgrow.studying.legs import FALLING, STABLE, WHOLE
from flmgrow.studying.outcomes import Finding
from flmgrow.studying.rates import ChosenRate, provisional
from flmgrow.studying.study import Study, plan_data, read

HERE = Path("corpora")
LIKE = {"like": MASK}


def planned(folder: Path, scale: float = 1.0, **changes: Any) -> Study:
    return read(write_study(folder, study_data(HERE, **changes)), scale)


def facts(
    study: Study, rates: list[ChosenRate] | None = None
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """What was held equal, and what not, with rates that were searched if no others are given."""
    known = provisional(study.file)
    chosen = [ChosenRate(size, peak, "searched", (1e-3, peak, 1.0)) for size, peak in known.items()]
    return held_and_findings(study.arms, rates or chosen)


def found(study: Study, rates: list[ChosenRate] | None = None) -> dict[str, tuple[str, ...]]:
    """What was not equal, and in which arms."""
    return {each.what: each.arms for each in facts(study, rates)[1]}


def test_what_arms_have_in_common_is_one_leg_for_each_seed(tmp_path: Path) -> None:
    arms = {"zero": {**LIKE, "grown": {"growth": {"method": "zero"}}},
            "small": {"size": "small", "tokens": 7680}}  # fmt: skip
    study = planned(tmp_path, arms={**study_data(HERE)["arms"], **arms})
    paths = {arm: study.legs.last[arm, 1].path for arm in study.file.arms}
    assert paths[MASK][0] is paths["zero"][0] is paths["small"][0]
    assert paths[MASK][1] is not paths["zero"][1]
    assert paths["scratch-half"][0] is paths[SCRATCH][0]
    assert [leg.part.shape for leg in paths[SCRATCH]] == [STABLE, STABLE, FALLING]
    assert [leg.planned.last for leg in paths[SCRATCH]] == [8, 16, 20]
    assert not {leg.name for leg in study.legs.every if leg.seed == 1} & {
        leg.name for leg in study.legs.every if leg.seed == 2
    }
    data = plan_data(study)
    assert data["flops"] < 0.8 * data["flops_alone"]


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(12, 60), min_size=1, max_size=4, unique=True))
def test_the_legs_of_an_arm_are_the_arm(
    lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its steps, each once and in order, whatever others turn off on the way."""
    arms = {f"of-{steps}": {"size": "large", "tokens": steps * 256} for steps in lengths}
    study = planned(tmp_path_factory.mktemp("study"), arms=arms, seeds=[1])
    for arm in study.arms:
        path = study.legs.last[arm.name, 1].path
        assert path[0].planned.first == 0
        assert all(one.planned.last == other.planned.first for one, other in pairwise(path))
        assert path[-1].planned.last == arm.stages[-1].last
        assert sum(leg.cost for leg in path) == arm.flops


def test_nobody_turns_off_in_a_warm_up(tmp_path: Path) -> None:
    arms = {"short": {"size": "large", "tokens": 512}, "long": {"size": "large", "tokens": 5120}}
    study = planned(tmp_path, arms={**study_data(HERE)["arms"], **arms})
    (short,) = study.legs.last["short", 1].path
    assert short.part.shape == WHOLE
    assert short not in study.legs.last["long", 1].path


def test_a_leg_is_known_by_all_that_decides_on_it(tmp_path: Path) -> None:
    before = {leg.name for leg in planned(tmp_path).legs.every}
    assert {leg.name for leg in planned(tmp_path).legs.every} == before
    optimizer: dict[str, Any] = {"base": {"optimizer": {"beta2": 0.99}}}
    rates: dict[str, Any] = {"rates": {"values": {"small": 1e-3, "large": 1e-2}}}
    for changes in (optimizer, rates):
        assert not before & {leg.name for leg in planned(tmp_path, **changes).legs.every}


def test_all_lengths_are_scaled_and_none_vanishes(tmp_path: Path) -> None:
    whole, half = planned(tmp_path, seeds=[1]), planned(tmp_path, 0.5, seeds=[1])
    for one, other in zip(whole.arms, half.arms, strict=True):
        assert other.tokens == one.tokens / 2
        assert other.stages[0].stage.warmup_steps == one.stages[0].stage.warmup_steps / 2
        assert other.stages[0].stage.log.validation_every == 3
    tiny = planned(tmp_path, 0.001, seeds=[1])
    assert all(each.steps == 1 for arm in tiny.arms for each in arm.stages)


def test_an_arm_may_be_as_long_as_it_costs(tmp_path: Path) -> None:
    scratch = planned(tmp_path).arms[2]
    arms = {**study_data(HERE)["arms"], "small": {"size": "small", "flops": float(scratch.flops)}}
    small = planned(tmp_path, arms=arms).arms[-1]
    assert small.flops == pytest.approx(scratch.flops, rel=0.03)
    assert small.tokens > 3 * scratch.tokens


def test_a_fair_study_finds_nothing_but_shorter_decays(tmp_path: Path) -> None:
    assert set(found(planned(tmp_path))) == {"decay's length"}
    even = {**study_data(HERE)["arms"]}
    even[MASK] = {**even[MASK], "decay": 0.5}
    study = planned(tmp_path, arms=even)
    assert found(study) == {}
    assert len(facts(study)[0]) >= 9


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"data": {"seed": 9}}, "data"),
        ({"training": {"batch": 4, "micro_batch": 4}}, "training"),
        ({"optimizer": {"beta2": 0.99}}, "optimizer"),
        ({"data": {"validation_share": 0.1}}, "validation"),
        ({"learning_rate": {"peak": 1e-3}}, "learning rate"),
        ({"learning_rate": {"style": "constant"}}, "decay"),
        ({"grown": {"growth": {"ramp_steps": 30}}}, "masks"),
    ],
)
def test_what_an_arm_breaks_is_found(own: dict[str, Any], what: str, tmp_path: Path) -> None:
    study = planned(tmp_path, arms={**study_data(HERE)["arms"], "other": {**LIKE, **own}})
    assert found(study)[what] == ("other",)
    assert len(facts(study)[0]) < len(facts(planned(tmp_path))[0])


def test_a_rate_at_the_end_of_its_grid_and_one_that_was_not_searched_are_told(
    tmp_path: Path,
) -> None:
    study = planned(tmp_path)
    edge = [ChosenRate("small", 8e-3, "searched", (4e-3, 8e-3), edge="largest"),
            ChosenRate("large", 4e-3, "searched", (2e-3, 4e-3, 8e-3))]  # fmt: skip
    assert found(study, edge)["learning rate"] == (MASK,)
    by_hand = [ChosenRate(each.size, each.peak, "a guess") for each in edge]
    assert "learning rate" in found(study, by_hand)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"a": {"size": "huge", "tokens": 1}}}, "wanted one of small, large"),
        ({"arms": {"a": {"size": "small"}}}, "give either tokens or flops"),
        ({"arms": {"a": {"like": "a", "tokens": 1}}}, "like: is 'a'"),
        ({"arms": {"a": {"like": "b"}, "b": {"like": "a"}}}, "another arm, not like this one"),
        ({"seeds": [1, 1]}, "has a seed twice"),
        ({"rates": {"values": {"small": 1e-3}}}, "no rate is given for the size large"),
        ({"rates": {"grid": [1e-3]}}, "grid and tokens go together"),
        ({"base": {"learning_rate": {"peak": 1e-3}}}, "is given"),
        ({"sizes": {"huge": {"layers": 3}}, "arms": {"a": {"size": "huge", "tokens": 512}},
          "rates": {"values": {"huge": 1e-3}}}, "arm a"),
        ({"colour": "red"}, "colour"),
        ({"base": {"training": {"batch": 8, "micro_batch": 4, "batch_ramp": [4, 4, 64]}}},
         "training.batch_ramp: a study counts arms in steps of one batch"),
        ({"arms": {"a": {"size": "small", "tokens": 5120, "training": {
            "micro_batch": 4, "batch_ramp": [4, 4, 64]}}}}, "training.batch_ramp"),
        ({"arms": {"a": {"size": "small", "flops": 1e10, "training": {
            "freeze": [{"layers": 0}]}}}}, "flops with training.freeze"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    content = study_data(HERE)
    for key, value in changes.items():
        content[key] = {**content[key], **value} if key in ("sizes", "base") else value
        if key == "rates":
            content[key] = {"source": "a guess", **content["rates"], **value}
    with pytest.raises(UsageError, match=r"study\.yaml") as error:
        read(write_study(tmp_path, content))
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["study-growth", "study-growth-gpu"])
def test_the_studies_that_ship_can_be_carried_out(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    data = plan_data(read(path))
    assert data["flops"] < 0.75 * data["flops_alone"]
    assert sum(arm["scratch"] for arm in data["arms"]) >= 4
    scaled = plan_data(read(path, 0.1))
    assert scaled["flops"] == pytest.approx(data["flops"] / 10, rel=0.05)
