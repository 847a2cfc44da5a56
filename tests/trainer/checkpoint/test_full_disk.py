"""A disk that is full at any step of a run: one line, the right exit code, nothing half-written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_processes import losses, saved
from stage_runs import environment, make_data, stage_data, train, write_stage

from flmgrow.trainer.stage.changes import read_changes

pytestmark = pytest.mark.slow

RUNS = Path(__file__).with_name("full_disk_runs.py")
SUPPORT = Path(__file__).parents[2] / "support"
PROGRESS = ("small  ", "note: ")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that has come to step 1 and is to go on to step 2, with another learning rate."""
    folder = tmp_path_factory.mktemp("stage")
    data = make_data(folder / "data")
    content = stage_data(data, training={"steps": 1}, checkpoint={"every": 1, "keep": 2})
    stage = write_stage(folder / "base", content)
    train(stage)
    more = {"training": {"steps": 2}, "learning_rate": {"peak": 2e-3}}
    changed = stage_data(data, checkpoint={"every": 1, "keep": 2}, **more)
    stage.write_text(yaml.safe_dump(changed))
    return stage.parent


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
def test_full_at_any_step(base: Path, tmp_path: Path, stride: int) -> None:
    path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, RUNS, base, tmp_path, str(stride)],
        env={**environment(), "PYTHONPATH": path},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *runs, whole = map(json.loads, done.stdout.splitlines())
    assert (whole["met"], whole["code"]) == (False, 0), whole
    assert len(runs) * stride > 40
    undisturbed = tmp_path / f"{whole['room']:03d}"
    for run in runs:
        folder = tmp_path / f"{run['room']:03d}"
        assert run["met"]
        assert run["code"] == 4, run
        lines = [line for line in run["told"].splitlines() if not line.startswith(PROGRESS)]
        assert len(lines) == 2, run
        assert re.match(rf"error: {folder}/.*No space left on device", lines[0]), run
        assert lines[1] == "hint: free some space, then run the same command again: it resumes"
        assert run["again"] == 0, run
        assert losses(folder) == losses(undisturbed), run
        assert saved(folder / "checkpoints") == saved(undisturbed / "checkpoints"), run
        changed = [read_changes(place / "changes.jsonl") for place in (folder, undisturbed)]
        assert changed[0] == changed[1], run
        assert {p.name for p in folder.iterdir()} == {p.name for p in undisturbed.iterdir()}, run
