"""Services are told what the metrics say; what becomes of them is nothing to the training."""

import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage_runs import environment, make_data, write_stage
from trained_here import small, trained_in

from flmgrow.trainer.metrics.services import IDENTITIES, identity_of


class FakeService:
    """wandb and trackio at once, as far as they are asked; ``gone`` is when calls begin to fail."""

    def __init__(self, gone: int | None = None) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.finished = 0
        self._calls, self._gone = 0, gone

    def Settings(self, **settings: Any) -> Any:  # noqa: N802 (its name there)
        return SimpleNamespace(**settings)

    def init(self, **given: Any) -> "FakeService":
        self._call()
        print("a package that tells of itself on stdout")
        self.begun.append(given)
        return self

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._call()
        assert step in (None, values["step"])
        self.told.append(values)

    def finish(self) -> None:
        self._call()
        self.finished += 1

    def _call(self) -> None:
        self._calls += 1
        if self._gone is not None and self._calls > self._gone:
            raise ConnectionError("no way there\nand more")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def _content(data: Path, name: str, steps: int = 4) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "log": {"validation_every": 2, name: {"project": "flm"}},
        "data": {"validation_share": 0.1},
        "training": {"steps": steps},
        "checkpoint": {"every": 2},
    }
    return small(data, **changes)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_as_the_same_one(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    service = FakeService()
    monkeypatch.setitem(sys.modules, name, service)
    capsys.readouterr()
    trained_in(tmp_path, _content(data, name))
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "iter_0000004")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    trained_in(tmp_path, _content(data, name))
    assert capsys.readouterr().out == ""
    first, second = service.begun
    assert first == second
    assert (first["project"], first["resume"]) == ("flm", "allow")
    assert first["config"]["training"]["batch"] == 8
    identity = json.loads((tmp_path / IDENTITIES).read_text())[name]
    known = {"wandb": (identity, "small"), "trackio": (None, f"small-{identity}")}
    assert (first.get("id"), first["name"]) == known[name]
    assert service.finished == 2
    again = service.told[-3:]  # the steps after the checkpoint are told again
    assert [each["step"] for each in service.told] == [1, 2, 2, 3, 4, 4, 3, 4, 4]
    assert [each.get("loss") for each in again] == [e.get("loss") for e in service.told[3:6]]
    for told, line in zip(service.told[:3] + again, _lines(tmp_path), strict=True):
        key = "loss" if line["kind"] == "step" else "validation_loss"
        assert (told[key], told["tokens"]) == (line[key], line["tokens"])
    trained_in(tmp_path / "anew", _content(data, name, steps=1))
    assert json.loads((tmp_path / "anew" / IDENTITIES).read_text())[name] != identity


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 3])
def test_a_service_that_is_gone_costs_one_line(
    gone: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService(gone)
    monkeypatch.setitem(sys.modules, "wandb", service)
    told = trained_in(tmp_path, _content(data, "wandb"))
    wanted = (
        "note: log.wandb: ConnectionError: no way there: nothing more is told there, the training "
        "goes on"
    )
    assert [line for line in told.splitlines() if "wandb" in line] == [wanted]
    assert len(service.told) == max(0, gone - 1)
    assert len([line for line in _lines(tmp_path) if line["kind"] == "step"]) == 4


def test_a_package_that_is_missing_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    told = trained_in(tmp_path, _content(data, "trackio"), expect=2)
    assert "error: log.trackio: the package trackio is not installed\n" in told
    assert "hint: pip install 'flmgrow[trackio]', or leave out log.trackio\n" in told


def test_an_identity_is_kept_unless_a_run_begins(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    first = identity_of(metrics, "wandb", resumed=False)
    other = identity_of(metrics, "trackio", resumed=True)  # asked for from here on
    assert identity_of(metrics, "wandb", resumed=True) == first
    assert identity_of(metrics, "trackio", resumed=True) == other != first
    assert identity_of(metrics, "wandb", resumed=False) != first
    (tmp_path / IDENTITIES).write_text("[")
    assert identity_of(metrics, "wandb", resumed=True)


def _really(package: str, stage: Path, **variables: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not here: pip install {package}")
    for _ in range(2):  # the second goes on from the end
        done = subprocess.run(
            [sys.executable, "-m", "flmgrow", "train", str(stage)],
            env={**environment(), **variables},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert "nothing more is told there" not in done.stderr
        stage.write_text(stage.read_text().replace("steps: 2", "steps: 4"))


@pytest.mark.slow
def test_trackio_itself_keeps_one_run(data: Path, tmp_path: Path) -> None:
    stage = write_stage(tmp_path / "run", _content(data, "trackio", steps=2))
    _really("trackio", stage, TRACKIO_DIR=str(tmp_path / "kept"), HF_HUB_OFFLINE="1")
    (file,) = (tmp_path / "kept").glob("flm*.db")
    with sqlite3.connect(file) as kept:
        rows = kept.execute("SELECT DISTINCT run_name FROM metrics").fetchall()
    identity = json.loads((stage.parent / IDENTITIES).read_text())["trackio"]
    assert rows == [(f"small-{identity}",)]


@pytest.mark.slow
def test_wandb_itself_works_offline(data: Path, tmp_path: Path) -> None:
    stage = write_stage(tmp_path / "run", _content(data, "wandb", steps=2))
    _really("wandb", stage, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    identity = json.loads((stage.parent / IDENTITIES).read_text())["wandb"]
    kept = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(kept) == 2
    assert all(list(folder.glob("*.wandb")) for folder in kept)
