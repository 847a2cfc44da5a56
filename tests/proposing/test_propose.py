"""A budget becomes schedules that stay within it, are judged alike, and can be run."""

import json
import re
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budgets import write_budget, write_stage_of
from hypothesis import given, settings
from hypothesis import strategies as st

import flmgrow
from flmgrow.cli.app import run
from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.prediction.law import SIZES_AND_TOKENS, Law, prior
from flmgrow.proposing.candidates import SHARES, ScheduleKind, ScheduleLimits, candidates, sizes
from flmgrow.proposing.carrying import ReadStage, carried_by, ends_of, loss_of
from flmgrow.proposing.verdict import Expected, verdict

ROOT = Path(__file__).resolve().parents[2]
LAW = prior()[0]
SMALL = ModelConfig(
    layers=4, hidden=256, ffn=1024, kv_groups=4, queries_per_group=1, head_dim=64, vocab=257,
    max_positions=128,
)  # fmt: skip

size = st.floats(1e6, 1e10)
tokens = st.floats(1e8, 1e11)


@given(small=size, factor=st.floats(1.5, 50), first=tokens, second=tokens, share=st.floats(0, 1))
def test_what_growth_carries_over_lies_between_nothing_and_all(
    small: float, factor: float, first: float, second: float, share: float
) -> None:
    legs = [ReadStage(small, first), ReadStage(small * factor, second)]
    nothing, some, everything = (loss_of(LAW, legs, carried) for carried in (0.0, share, 1.0))
    assert nothing == pytest.approx(LAW.loss(small * factor, second))
    assert everything <= some * (1 + 1e-9)
    assert some <= nothing * (1 + 1e-9)
    assert everything <= LAW.loss(small, first) * (1 + 1e-9)


@given(parameters=size, first=tokens, second=tokens)
def test_a_growth_to_the_same_size_that_carries_all_over_is_none(
    parameters: float, first: float, second: float
) -> None:
    legs = [ReadStage(parameters, first), ReadStage(parameters, second)]
    assert loss_of(LAW, legs, 1.0) == pytest.approx(LAW.loss(parameters, first + second), rel=1e-9)


@given(parameters=size, count=tokens)
def test_tokens_for_a_loss_are_those_that_lead_to_it(parameters: float, count: float) -> None:
    assert LAW.tokens_for(parameters, LAW.loss(parameters, count)) == pytest.approx(count, rel=1e-6)


def test_what_no_training_reaches_takes_for_ever() -> None:
    """A law in which tokens hardly count, or sizes at once, must not overflow."""
    flat = Law(SIZES_AND_TOKENS, np.array([0.0, 0.0, 0.0, -9.0, 0.0]), np.zeros(2), 0.0)
    steep = Law(SIZES_AND_TOKENS, np.array([0.0, 0.0, 9.0, 0.0, 0.0]), np.full(2, 10.0), 0.0)
    assert flat.tokens_for(1e6, 1.01) == inf
    assert steep.tokens_for(1e6, 2.0) == pytest.approx(np.exp(10.0))
    legs = [ReadStage(1e6, 1e8), ReadStage(1e7, 1e8)]
    for law in (flat, steep):
        for carried in (0.0, 0.5, 1.0):
            assert isfinite(loss_of(law, legs, carried))
    # Below what any model of that size reaches, nothing is carried over where nothing is to be.
    turned = Law(SIZES_AND_TOKENS, np.array([0.0, -9.0, -1.0, 0.0, 0.0]), np.zeros(2), 0.0)
    assert turned.tokens_for(1.0, 1.5) == inf
    down = [ReadStage(1e6, 1e8), ReadStage(1.0, 1e8)]
    assert loss_of(turned, down, 0.0) == pytest.approx(turned.loss(1.0, 1e8))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_what_a_run_has_carried_over_is_found_again(share: float, tmp_path: Path) -> None:
    widths, counts = (32, 64), (10**8, 3 * 10**8)
    models = [
        ModelConfig(layers=2, hidden=width, ffn=4 * width, kv_groups=4, queries_per_group=1,
                    head_dim=width // 4, vocab=257, max_positions=32)
        for width in widths
    ]  # fmt: skip
    legs = [
        ReadStage(parameter_count(model), count)
        for model, count in zip(models, counts, strict=True)
    ]
    write_stage_of(tmp_path / "01-small", 32, loss_of(LAW, legs[:1], share), counts[0])
    write_stage_of(tmp_path / "02-large", 64, loss_of(LAW, legs, share), sum(counts))
    assert carried_by(LAW, ends_of(tmp_path)) == pytest.approx([share], abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(flops=st.floats(1e15, 1e18), data=st.floats(1e7, 1e10), factor=st.floats(2, 100))
def test_schedules_stay_within_the_budget(flops: float, data: float, factor: float) -> None:
    limits = ScheduleLimits(flops, data, 128, 2048)
    models = sizes(SMALL, factor * parameter_count(SMALL))
    for candidate in candidates(models, models[-1], limits):
        assert candidate.flops(128) <= flops * (1 + 1e-9)
        assert sum(candidate.tokens) <= data * (1 + 1e-9)
        counts = [parameter_count(model) for model in candidate.models]
        assert counts == sorted(counts)
        assert candidate.kind is ScheduleKind.SMALLER or candidate.models[-1] == models[-1]


@pytest.mark.parametrize("tokens", [2e8, 1e9, 1e10])
def test_where_data_is_scarce_growth_spends_less(tokens: float) -> None:
    """A budget that no data could use up: every share of the data may still be read before."""
    limits = ScheduleLimits(1e22, tokens, 128, 2048)
    models = sizes(SMALL, 30 * parameter_count(SMALL))
    grown = [each for each in candidates(models, models[-1], limits) if len(each.models) == 2]
    begun_small = [each for each in grown if each.models[0] == models[0]]
    shares = [each.tokens[0] / tokens for each in begun_small]
    assert shares == pytest.approx(SHARES)
    assert all(sum(each.tokens) == pytest.approx(tokens) for each in grown)
    assert all(each.flops(128) < 0.5 * limits.flops for each in grown)
    kinds = {each.kind for each in candidates(models, models[-1], limits)}
    assert kinds == set(ScheduleKind)


def test_a_schedule_that_spends_less_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_budget(tmp_path, budget={"flops": 1e18}, tokens="200M", final_size="300M")
    assert run(["propose", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("grown once")]
    assert told
    assert all(re.search(r"tokens, \d+% of the budget$", line) for line in told)


def losses(kind: ScheduleKind, *found: float, cost: float = 1.0) -> Expected:
    models = sizes(SMALL, None)[:1]
    (candidate, *_) = candidates(models, None, ScheduleLimits(1e17, 1e10, 128, 2048))
    object.__setattr__(candidate, "kind", kind)
    return Expected(candidate, np.array(found), cost)


def test_a_verdict_needs_nearly_all_draws() -> None:
    scratch = losses(ScheduleKind.SCRATCH, *[2.0] * 100)
    sure = verdict([scratch, losses(ScheduleKind.GROWN, *[1.9] * 96, *[2.1] * 4)])
    assert sure.text == "grow: it wins in 96% of what may be so"
    assert sure.winner.candidate.kind is ScheduleKind.GROWN
    lost = verdict([scratch, losses(ScheduleKind.GROWN, *[1.9] * 4, *[2.1] * 96)])
    assert lost.text == "do not grow: it loses in 96% of what may be so"
    assert lost.winner.candidate.kind is ScheduleKind.SCRATCH
    unknown = verdict([scratch, losses(ScheduleKind.LATE, *[1.9] * 60, *[2.1] * 40)])
    assert unknown.text.startswith("undecided: growth wins in 60%")
    cheaper = verdict([scratch, losses(ScheduleKind.GROWN, *[2.0] * 100, cost=0.5)])
    assert cheaper.text == "grow: it wins in 100% of what may be so"
    as_dear = verdict([scratch, losses(ScheduleKind.GROWN, *[2.0] * 100)])
    assert as_dear.text == "do not grow: it loses in 100% of what may be so"
    smaller = verdict(
        [
            scratch,
            losses(ScheduleKind.GROWN, *[1.9] * 100),
            losses(ScheduleKind.SMALLER, *[1.8] * 100),
        ]
    )
    assert smaller.text.startswith("a smaller model for longer is better in 100%")
    assert smaller.winner.candidate.kind is ScheduleKind.GROWN


@pytest.mark.parametrize(
    ("carried", "told"), [([1.0, 1.0], "grow: it wins"), ([0.0, 0.0], "do not grow: it loses")]
)
def test_growth_is_worth_what_it_carries_over(
    carried: list[float], told: str, tmp_path: Path
) -> None:
    """A model that is far too large for its budget: with all carried over it is grown into."""
    found = flmgrow.propose(write_budget(tmp_path, final_size="300M", carried=carried))
    assert told in found.verdict.text
    assert "a smaller model for longer is better in 100%" in found.verdict.text


def test_the_proposal_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = tmp_path / "schedule.yaml"
    file = write_budget(tmp_path, final_size="300M", carried=[1.0, 1.0])
    assert run(["propose", str(file), "--write", str(schedule)]) == 0
    told = capsys.readouterr().out
    for words in ("budget", "from scratch", "smaller, for longer", "grown once", "verdict"):
        assert words in told
    monkeypatch.chdir(tmp_path)
    assert run(["run", str(schedule), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["stages"]) >= 2
    assert sum(stage["flops"] for stage in planned["stages"]) == pytest.approx(1e17, rel=0.01)
    assert run(["cost", str(schedule)]) == 0
    assert "does not fit" not in capsys.readouterr().out


def test_json_has_the_documented_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["propose", str(write_budget(tmp_path, final_size="20M")), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    section = page.partition("\n## propose\n")[2].partition("\n## ")[0]
    assert list(told) == re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_budgets_in_dollars_and_days_are_operations(tmp_path: Path) -> None:
    cluster = {"accelerator": "A100", "gpus": 2, "utilisation": 0.5, "price": 2.0}
    ends = {"cluster": cluster, "final_size": "20M"}
    days = flmgrow.propose(write_budget(tmp_path, budget={"gpu_days": 0.01}, **ends))
    dollars = flmgrow.propose(write_budget(tmp_path, budget={"dollars": 0.48}, **ends))
    assert days.limits.flops == pytest.approx(0.01 * 86400 * 0.5 * 156e12)
    assert dollars.limits.flops == pytest.approx(days.limits.flops)


def test_a_law_of_ones_own_runs(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    rows = [
        f"{n},{d},{1 + (n / 1e6) ** -0.3 + (d / 1e8) ** -0.3}"
        for n in (1e6, 3e6, 1e7, 3e7)
        for d in (1e8, 1e9, 1e10)
    ]
    table.write_text("\n".join(["parameters,tokens,loss", *rows]) + "\n")
    file = write_budget(tmp_path, prior=None, law=["points.csv"], final_size="100M")
    found = flmgrow.propose(file)
    assert found.supposed[0] == "a law of 12 runs, 3.33 times the largest of them"
    table.write_text("\n".join(["parameters,loss", "1e6,3", "2e6,2.8", "3e6,2.7", "4e6,2.6"]))
    with pytest.raises(UsageError, match="the runs of the law all end at one length"):
        flmgrow.propose(file)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two budgets": ({"budget": {"flops": 1.0, "dollars": 1.0}}, "budget: .*give one of flops"),
    "no price": ({"budget": {"dollars": 1.0}}, "a budget in dollars needs cluster.price"),
    "no law": ({"prior": None}, "give either law .* or prior"),
    "negative price": ({"cluster": {"price": -1.0}}, "cluster.price"),
    "nothing left": ({"budget": {"flops": 1e9}}, "a budget of 1e.09 operations .* allows no sched"),
    "too large": (
        {"budget": {"flops": 3e13}, "final_size": "300M"}, "allows no schedule that trains 303,",
    ),
    "grown under another law": (
        {"grown": ["runs/a"]}, "grown needs law: published losses are of other data",
    ),
    "a law nobody has runs for": ({"growth_law": "two-stage"}, "two-stage needs 6 runs that grew"),
    "factors": (
        {"two_stage": {"source": "x", "A": 1.0, "a1": 0.1, "a2": 0.1, "a3": 0.0,
                       "factors": [4, 2]}},
        "two_stage.factors begins above where it ends",
    ),
    "too small": ({"final_size": "1M"}, "final_size: 1,000,000 is below the stage's own"),
    "no layout": (
        {"cluster": {"memory": 1e6}, "final_size": "20M"},
        "parameters fit no layout of 1 devices: the least is",
    ),
    "unknown": ({"colour": "red"}, "colour: there is no such key"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proposed_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, told = REFUSED[name]
    assert run(["propose", str(write_budget(tmp_path, **changes))]) == UsageError.exit_code
    assert re.search(told, capsys.readouterr().err.splitlines()[0])


def test_a_batch_that_grows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_budget(tmp_path)
    stage = tmp_path / "stage.yaml"
    ramp = "micro_batch: 4\n  batch_ramp: [4, 4, 64]"
    stage.write_text(stage.read_text().replace("micro_batch: 4", ramp))
    assert run(["propose", str(file)]) == UsageError.exit_code
    found = f"error: {stage}: training.batch_ramp: a proposal counts in steps of one batch"
    assert capsys.readouterr().err.splitlines()[0] == found
