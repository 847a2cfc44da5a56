"""A report says what the outcomes say, each with its interval, and says what it does not know."""

import csv
import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from simulated_studies import Planted, simulate

from flmgrow.studying.comparison import SeedVerdict
from flmgrow.studying.outcomes import Arm, Expense, Finding, MeasuredStudy
from flmgrow.studying.picture import picture
from flmgrow.studying.report import StudyReport, curve_of, report_of
from flmgrow.studying.statistics import estimate
from flmgrow.studying.tables import readings_table, runs_table
from flmgrow.studying.verdicts import held_sentences, sentences
from flmgrow.studying.wording import markdown, told
from flmgrow.studying.writing import check_packages, write_report

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
ARMS = (
    Planted("good", shift=-0.15),
    Planted("bad", shift=0.15),
    Planted("same"),
    Planted("low", shift=-1.0),
    Planted("high", shift=1.0),
    Planted("wild", diverges=(1,)),
    Planted("long", shift=0.3, length=8.0),
)
CLAIMS = re.compile(r"fewer|less wall|worse|lower than from|no difference found")


@cache
def report() -> StudyReport:
    return report_of(simulate(3, ARMS, noise=0.002))


def said(arm: str, axis: str = "FLOPs") -> list[str]:
    return [each for each in sentences(report())[arm] if axis in each]


def test_each_arm_has_its_sentence() -> None:
    faster, lower = said("good")
    assert re.fullmatch(
        r"reaches a loss of 1\.\d{3} with 1\.\d\d times fewer FLOPs than from scratch "
        r"\[1\.\d\d, 1\.\d\d\]",
        faster,
    )
    assert re.fullmatch(
        r"for equal FLOPs, its loss is lower than from scratch by 0\.1\d\d \[0\.\d{3}, 0\.\d{3}\]",
        lower,
    )
    slower, higher = said("bad")
    assert slower.startswith("worse: needs 1.")
    assert higher.startswith("for equal FLOPs, its loss is worse: higher than from scratch by 0.1")
    assert all("no difference found" in each for each in said("same"))


def test_numbers_are_those_of_the_data() -> None:
    rows = [each for each in report().against if each.arm == "bad" and each.axis is Expense.FLOPS]
    found = rows[0].ratio.estimate
    assert found
    slower = said("bad")[0]
    assert f"{1 / found.value:.2f} times as many FLOPs" in slower
    assert slower.endswith(f"[{1 / found.high:.2f}, {1 / found.low:.2f}]")


def test_beyond_the_frontier_is_told_with_its_side() -> None:
    assert "lower than any run from scratch in 3 of 3 seeds" in said("low")[0]
    assert said("low")[0].endswith("scratch needs more than 2.00 times as many FLOPs")
    assert said("high")[0].endswith("higher than any run from scratch in 3 of 3 seeds")
    assert "took more than the longest run from scratch in 3 of 3 seeds" in said("long")[1]


def test_what_diverged_is_counted_and_compared_with_nothing() -> None:
    assert sentences(report())["wild"] == ["diverged in 1 of 3 seeds, and is compared with nothing"]
    final = report().final("wild")
    assert (final.loss, final.diverged, sorted(final.losses)) == (None, (1,), [0, 2])
    assert "diverged in 1 of 3" in told(report())


def test_no_claim_is_without_its_interval() -> None:
    """Every sentence that says better, worse or no difference ends with brackets."""
    every = [each for found in sentences(report()).values() for each in found]
    claims = [each for each in every if CLAIMS.search(each)]
    assert len(claims) > 15
    assert all(re.search(r" \[-?\d+\.\d+, -?\d+\.\d+\]$", each) for each in claims)
    others = [each for each in every if each not in claims]
    assert all(each.startswith(("beyond the frontier", "diverged in")) for each in others)


def test_one_seed_claims_nothing() -> None:
    one = report_of(simulate(3, ARMS, seeds=1))
    found = sentences(one)["good"]
    assert all("one seed has no interval" in each for each in found)
    assert not any(CLAIMS.search(each) for each in found)
    assert "[" not in told(one)


def test_without_a_frontier_nothing_is_claimed() -> None:
    measured = simulate(3, ARMS[:1])
    alone = MeasuredStudy(measured.arms[-1:], measured.outcomes[-3:], (Expense.FLOPS,))
    assert sentences(report_of(alone)) == {
        "good": ["there is nothing from scratch to compare it with"]
    }
    assert "Beside scratch" not in markdown(report_of(alone))


def test_what_was_held_is_told_and_what_was_not() -> None:
    measured = simulate(4, ARMS[:2])
    first, *others = measured.outcomes
    small = replace(measured.arms[-1], sizes=(500,))
    arms = (*measured.arms[:-1], small, Arm("later", "not yet", (500, 1000), 1, 1.0, False))
    outcomes = (replace(first, decayed=False), *others[:-1])
    finding = Finding("the seeds of data differ", ("good", "bad"), "1 and 2")
    changed = replace(
        measured, arms=arms, outcomes=outcomes, held=("All read alike.",), findings=(finding,)
    )
    held, *unequal = held_sentences(report_of(changed))
    assert held == "All read alike."
    assert unequal == [
        "Not equal: the seeds of data differ (good, bad): 1 and 2.",
        "Not equal: no part of the frontier (scratch-1): the learning rate had not decayed at the "
        "end.",
        "Not equal: ends at another size (bad): 500 parameters, those from scratch have 1,000.",
        "Not equal: has not all seeds (bad): not trained with 2.",
        "Not equal: has not all seeds (later): not trained with 0, 1, 2.",
    ]
    assert "| later | not yet | 500 to 1,000 | 1 | 1 | not trained | 0 |" in markdown(
        report_of(changed)
    )


def test_a_frontier_that_rises_is_told() -> None:
    measured = simulate(4, ARMS[:1])
    longest = next(each for each in measured.outcomes if each.arm == "scratch-4")
    worse = replace(longest, readings=tuple(
        replace(each, loss=each.loss + 1) for each in longest.readings
    ))  # fmt: skip
    outcomes = tuple(worse if each is longest else each for each in measured.outcomes)
    (told_of,) = report_of(replace(measured, outcomes=outcomes)).findings
    assert told_of.what == "a longer run from scratch ended worse than a shorter one"
    assert told_of.detail.startswith("with seed 0;")


def test_curves_are_over_the_steps_that_all_seeds_have() -> None:
    one, other = (each for each in simulate(5, ARMS[:1], seeds=2).outcomes if each.arm == "good")
    short = replace(other, readings=other.readings[1:4])
    curve = curve_of([one, short])
    assert [point.step for point in curve] == [2, 3, 4]
    assert curve[0].loss == estimate([one.readings[1].loss, short.readings[0].loss])
    assert curve_of([]) == ()


def test_the_loss_around_a_growth_is_over_seeds_too() -> None:
    growth = next(each for each in report().growths if each.arm == "good")
    assert growth.jump
    assert growth.jump.value == pytest.approx(1e-3)
    assert [step for step, _ in growth.around] == [-3, -2, -1, 0, 1, 2, 3]
    losses = dict(growth.around)
    assert losses[0].value - losses[-1].value == pytest.approx(0.1)
    row = next(
        line for line in markdown(report()).splitlines() if line.startswith("| good | large")
    )
    assert f"{losses[-1].value:.3f}, then at most {losses[0].value:.3f}, at last" in row


def test_a_growth_that_was_not_measured_has_no_jump() -> None:
    measured = simulate(3, ARMS[:1])
    *rest, last = measured.outcomes
    blind = replace(last, growths=(replace(last.growths[0], before=None, around=()),))
    growth = report_of(replace(measured, outcomes=(*rest, blind))).growths[0]
    assert growth.jump is growth.before is growth.after is None
    assert growth.around == ()


def test_the_reference_lists_every_key() -> None:
    section = PAGE.read_text(encoding="utf-8").split("\n## study\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    plain = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert list(plain) == documented
    assert {row["ratio"]["verdict"] for row in plain["against_scratch"]} <= set(SeedVerdict)


def test_tables_hold_each_training_and_each_reading() -> None:
    measured = report().measured
    runs = list(csv.DictReader(io.StringIO(runs_table(measured))))
    assert len(runs) == len(measured.outcomes)
    wild = [row for row in runs if row["arm"] == "wild"]
    assert [row["loss"] == "" for row in wild] == [False, True, False]
    assert float(runs[0]["loss"]) == measured.outcomes[0].final.loss
    readings = list(csv.DictReader(io.StringIO(readings_table(measured))))
    assert len(readings) == sum(len(each.readings) for each in measured.outcomes)


def test_every_row_of_a_table_has_as_many_cells() -> None:
    text = markdown(report())
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_picture_is_drawn_alike_each_time(seeds: int) -> None:
    pytest.importorskip("matplotlib")
    drawn = report() if seeds == 3 else report_of(simulate(3, ARMS, seeds=1))
    svg = picture(drawn, "svg")
    assert svg == picture(drawn, "svg")
    for words in (b"from scratch", b"good", b"wild", b"steps since the growth"):
        assert words in svg


def test_a_study_of_nothing_yet_is_told_and_drawn() -> None:
    pytest.importorskip("matplotlib")
    measured = simulate(3, ARMS)
    nothing = report_of(replace(measured, outcomes=()))
    assert "not trained" in markdown(nothing)
    assert picture(nothing, "svg").startswith(b"<?xml")


def test_everything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    check_packages()
    write_report(tmp_path, report())
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "readings.csv", "report.md", "results.json", "runs.csv", "study.png", "study.svg",
    ]  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(
        json.dumps(report().to_json())
    )
    assert (tmp_path / "report.md").read_text() == markdown(report())
