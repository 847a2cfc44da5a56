"""The scores of a run's checkpoints are found, and drawn below its loss where they were reached."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import accepted, flmgrow, refused
from drawn_runs import stage_of, write_run

from flmgrow.evaluation.results import OWN, Facts
from flmgrow.stages.run_scores import MOST_CURVES, evaluations_in, score_curves
from flmgrow.storage.content_sum import with_sum

pytest.importorskip("matplotlib")


def write_result(folder: Path, tokens: int | None, results: dict[str, dict[str, float]]) -> Path:
    facts = Facts(folder.name, parameters=1, tokens=tokens, flops=tokens and 1000 * tokens)
    folder.mkdir(parents=True)
    content = {"results": results, OWN: {"checkpoint": asdict(facts)}}
    (folder / "results_2026.json").write_text(json.dumps(with_sum(content)))
    return folder


def scored(value: float, error: float = 0.1) -> dict[str, float]:
    return {"acc,none": 9.0, "acc_norm,none": value, "acc_norm_stderr,none": error}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", [stage_of("small", 1, 40), stage_of("large", 41, 30)])
    bits = {"bits_per_byte,none": 2.0}
    write_result(folder / "scores/02-large", 256 * 70, {"arc": scored(0.75), "text": bits})
    write_result(folder / "scores/01-small", 256 * 40, {"arc": scored(0.25), "text": bits})
    return folder


def test_scores_are_found_in_the_order_of_tokens(run: Path) -> None:
    (place,) = evaluations_in(run)
    arc, text = score_curves([place])
    assert (arc.task, arc.metric, text.metric) == ("arc", "acc_norm", "bits_per_byte")
    assert [point.tokens for point in arc.points] == [256 * 40, 256 * 70]
    assert [point.value for point in arc.points] == [0.25, 0.75]
    assert [point.error for point in text.points] == [None, None]


def test_what_stands_nowhere_is_not_drawn(run: Path, tmp_path: Path) -> None:
    write_result(run / "scores/other", None, {"arc": scored(1.0)})
    (place,) = evaluations_in(run)
    assert [len(curve.points) for curve in score_curves([place])] == [2, 2]
    assert evaluations_in(tmp_path) == []


def test_a_picture_has_a_row_for_each_metric(run: Path, tmp_path: Path) -> None:
    accepted("plot", run, "--out", tmp_path / "with.svg")
    drawn = (tmp_path / "with.svg").read_text()
    assert all(words in drawn for words in ("acc norm", "bits per byte", ">arc<", ">text<"))
    (run / "scores").rename(tmp_path / "moved")
    accepted("plot", run, "--out", tmp_path / "without.svg")
    assert "acc norm" not in (tmp_path / "without.svg").read_text()
    accepted("plot", run, "--evaluation", tmp_path / "moved", "--out", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_more_scores_than_styles_are_told(run: Path, tmp_path: Path) -> None:
    many = {f"task{number}": scored(0.5) for number in range(MOST_CURVES + 2)}
    write_result(tmp_path / "more" / "x", 256, many)
    outcome = flmgrow("plot", run, "--evaluation", tmp_path / "more", "--out", tmp_path / "a.svg")
    assert outcome.code == 0
    assert "note: left out the scores of 2 tasks" in outcome.err


def test_scores_of_two_runs_are_each_in_its_folder(run: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "both.svg"
    other = write_run(tmp_path / "other", [stage_of("small", 1, 9)])
    write_result(other / "scores/01-small", 256 * 9, {"arc": scored(0.5)})
    accepted("plot", run, other, "--out", drawn)
    assert ">run: arc<" in drawn.read_text()
    assert ">other: arc<" in drawn.read_text()
    refused(2, "--evaluation beside 2 runs", "plot", run, other, "--evaluation", run / "scores",
            "--out", drawn, place=tmp_path)  # fmt: skip


def test_damaged_scores_are_refused(run: Path, tmp_path: Path) -> None:
    file = run / "scores/01-small/results_2026.json"
    file.write_text(file.read_text().replace("0.25", "0.95"))
    refused(3, f"{file}: is not what was written", "plot", run, "--out", tmp_path / "a.svg",
            place=tmp_path)  # fmt: skip
