"""What another process has told is not told again."""

from pathlib import Path

import pytest
from commands import flmgrow
from stage_plans import written

from flmgrow.cli import run as run_
from flmgrow.cli import train as train_


@pytest.mark.parametrize("code", [7, 130, 143])
def test_a_command_ends_as_the_processes_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Also an interrupted one: typer would make an exception of that code, and it be told twice."""
    monkeypatch.setattr(run_, "launch", lambda words: code)
    monkeypatch.setattr(train_, "launch", lambda *_, **__: code)
    outcome = flmgrow("run", written(tmp_path), "--out", tmp_path / "out")
    stage = tmp_path / "out" / "01-small" / "stage.yaml"
    assert (outcome.code, outcome.err) == (code, f"$ flmgrow train {stage}\n")
    outcome = flmgrow("train", stage)
    assert (outcome.code, outcome.err) == (code, "")
