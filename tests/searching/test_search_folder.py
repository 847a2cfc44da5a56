"""The folder of a search: one search at a time, nothing lost, and nothing dropped twice."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from searches import PEAK, STEPS, write_search
from stage_runs import make_data

from flmgrow.cli.app import run
from flmgrow.errors import OutputExistsError, UsageError
from flmgrow.searching.request import read_search
from flmgrow.searching.running import _climb
from flmgrow.searching.trials import SearchFolder
from flmgrow.stages.pool import Job, Pool, _Clock
from flmgrow.stages.trial_folder import TrialState
from flmgrow.storage.hidden import held


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


class Trained(SearchFolder):
    """A search's folder in which trainings are done by name, and their losses known."""

    def train(self, losses: dict[float, float], share: float) -> None:
        for trial in self.search.trials:
            folder = self.of(trial)
            if (folder / "outcome.json").exists():
                continue
            loss = losses[float(trial.point.settings[PEAK])]
            lines = [json.dumps({**STEP, "step": step, "loss": loss})
                     for step in range(1, int(share * STEPS) + 1)]  # fmt: skip
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


STEP: dict[str, Any] = {
    "samples": 8, "tokens": 256, "flops": 1, "language_loss": None, "teacher_loss": None,
    "grad_norm": 1.0, "learning_rate": 1e-3, "seconds": 0.1, "tokens_per_second": 1.0,
    "model_tflops": 1.0, "utilisation": None, "masks": {}, "stage": "x", "kind": "step",
}  # fmt: skip


class Idle:
    """A pool that runs nothing: all is done."""

    def run(self, jobs: Any, _: object) -> list[Any]:
        assert not list(jobs)
        return []


def test_halving_that_was_interrupted_drops_no_more_than_the_worse_half(
    data: Path, tmp_path: Path
) -> None:
    rates = [1e-3 * (1 + number) for number in range(16)]
    file = write_search(tmp_path, data, {PEAK: rates})
    folder = Trained(tmp_path / "out", read_search(file))
    folder.prepare(file)
    losses = {rate: 2 + rate for rate in rates}
    left = []
    for part in (0.25, 0.25, 0.5, 0.25, 0.5):  # each again, as the same command would
        folder.train(losses, part)
        _climb(folder, Idle(), lambda _: None, part)  # type: ignore[arg-type]
        left.append(sum(each.state is TrialState.OPEN for each in folder.outcomes()))
    assert left == [8, 8, 4, 4, 4]


def test_a_point_with_a_seed_that_diverged_is_dropped_first(data: Path, tmp_path: Path) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-3, 2e-3, 3e-3, 4e-3]}, seeds=[1, 2])
    folder = Trained(tmp_path / "out", read_search(file))
    folder.prepare(file)
    folder.train({1e-3: 1.0, 2e-3: 2.0, 3e-3: 3.0, 4e-3: 4.0}, 0.25)
    folder.keep(folder.search.trials[0], TrialState.DIVERGED)
    _climb(folder, Idle(), lambda _: None, 0.25)  # type: ignore[arg-type]
    open_ = {each.trial.point.settings[PEAK] for each in folder.outcomes()
             if each.state is TrialState.OPEN}  # fmt: skip
    assert open_ == {2e-3, 3e-3}


@pytest.mark.parametrize(
    "content", ['{"state": "foo", "steps": 1}', '{"state": "stopped"}', "{}", "[", '{"state": 1}']
)
def test_a_damaged_outcome_is_told_of(
    content: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_search(tmp_path, data, {PEAK: [1e-3]}), tmp_path / "out"
    folder = SearchFolder(out, read_search(file))
    folder.prepare(file)
    (folder.of(folder.search.trials[0]) / "outcome.json").write_text(content)
    assert run(["search", str(file), "--out", str(out)]) == 3
    assert "outcome.json: " in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("steps", [None, 5])
def test_a_trial_that_is_done_has_all_of_its_metrics(
    steps: int | None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they end early, the loss there is not that of its end."""
    file, out = write_search(tmp_path, data, {PEAK: [1e-3]}), tmp_path / "out"
    folder = Trained(out, read_search(file))
    folder.prepare(file)
    (trial,) = folder.search.trials
    checkpoints = folder.of(trial) / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(STEPS))
    folder.train({1e-3: 2.5}, 1.0)
    assert [each.loss for each in folder.outcomes()] == [2.5]
    if steps is None:
        (folder.of(trial) / "metrics.jsonl").unlink()
    else:
        folder.train({1e-3: 2.5}, steps / STEPS)
    assert run(["search", str(file), "--out", str(out)]) != 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"error: {folder.of(trial)}")
    assert told[1] == "hint: remove the trial's folder: the same command trains it again"


def test_what_a_shell_has_let_be_ignored_stays_so(tmp_path: Path) -> None:
    """A script's job in the background does not hear of an interrupt at its terminal."""
    found: list[Any] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Pool(1).run(
            [Job("none", tmp_path, 1)],
            lambda *_: found.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))),
        )
        assert found[0] is signal.SIG_IGN
        assert callable(found[1])
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_searches_in_one_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_search(tmp_path, data, {PEAK: [1e-3]}), tmp_path / "out"
    with held(out):
        for words in ([], ["--print-commands"]):
            code = run(["search", str(file), "--out", str(out), *words])
            assert code == OutputExistsError.exit_code
            told = capsys.readouterr().err
            assert f"error: {out}: another run (pid {os.getpid()} on " in told
        assert not (out / "trials").exists()
    assert run(["search", str(file), "--out", str(out), "--print-commands"]) == 0


def test_a_grid_that_grew_is_another_search(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With more points their numbers have more digits: old folders would be left beside new."""
    words = ["--out", str(tmp_path / "out"), "--print-commands"]
    file = write_search(tmp_path, data, {PEAK: [1e-3, 2e-3]})
    assert run(["search", str(file), *words]) == 0
    write_search(tmp_path, data, {PEAK: [1e-3, 2e-3]}, seeds=[1234, 5])  # other seeds may follow
    assert run(["search", str(file), *words]) == 0
    write_search(tmp_path, data, {PEAK: [1e-3 * n for n in range(1, 11)]})
    capsys.readouterr()
    assert run(["search", str(file), *words]) == UsageError.exit_code
    assert "trials/1-seed1234: is of another search" in capsys.readouterr().err


def test_where_the_best_cannot_be_written_nothing_is_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_search(tmp_path, data, {PEAK: [1e-3]})
    words = ["--out", str(tmp_path / "out"), "--write-best", str(tmp_path / "no" / "best.yaml")]
    assert run(["search", str(file), *words]) == UsageError.exit_code
    assert "no is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_steps_of_an_earlier_run_say_nothing_of_the_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    jobs = [Job(name, tmp_path / name, 100) for name in ("a", "b")]
    for job in jobs:
        job.folder.mkdir()
    record = '{"kind": "step"}\n'
    (jobs[0].folder / "metrics.jsonl").write_text(80 * record)
    clock = _Clock(jobs)
    now[0] += 10
    (jobs[0].folder / "metrics.jsonl").write_text(90 * record)
    assert clock.steps(jobs) == (90, 200)
    assert clock.seconds(jobs) == 110  # a step a second, and 110 to go
    clock.end(jobs[0])
    assert clock.steps([]) == (100, 200)
