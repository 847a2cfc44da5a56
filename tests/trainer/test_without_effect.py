"""A stage says at its beginning which of its settings do nothing in it."""

from pathlib import Path
from typing import Any

import pytest
from stage_runs import make_data
from trained_here import small, trained_in

KEPT = "checkpoint.keep: all 2 may lie in the guard.window of 5 steps before a spike; "
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing of it": (
        {"masks": {"in_turn": True}, "guard": {"rollbacks": 2, "window": 5}},
        [
            "masks: what the stage begins with has none that are not open: nothing rises",
            "guard.rollbacks: the stage never goes back, as guard.action is stop",
            "guard.window: the stage compares no losses, as guard.spike is not given",
        ],
    ),
    "too few are kept": (
        {"guard": {"action": "rollback", "window": 5}, "checkpoint": {"every": 2, "keep": 2}},
        [KEPT + "to go back to before it keep 3"],
    ),
    "nothing is saved": (
        {"guard": {"action": "rollback"}, "checkpoint": {"every": None}},
        [
            "guard.action: it goes back to what the stage begins with, as checkpoint.every is not "
            "given"
        ],
    ),
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "guarded": {"guard": {"spike": 1.0, "window": 5}},
    "enough are kept": {
        "guard": {"action": "rollback", "window": 5},
        "checkpoint": {"every": 2, "keep": 3},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def notes(told: str) -> list[str]:
    return [line.removeprefix("note: ") for line in told.splitlines() if line.startswith("note: ")]


def stage(data: Path, /, **changes: Any) -> dict[str, Any]:
    return small(data, training={"steps": 1}, learning_rate={"warmup_samples": 0}, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_does_nothing_is_told(data: Path, tmp_path: Path, name: str) -> None:
    changes, wanted = CASES[name]
    assert notes(trained_in(tmp_path, stage(data, **changes))) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_does_something_is_not(data: Path, tmp_path: Path, name: str) -> None:
    assert not notes(trained_in(tmp_path, stage(data, **OTHERWISE[name])))


@pytest.mark.slow
def test_begin_anew_is_told_to_come_too_late(data: Path, tmp_path: Path) -> None:
    """A stage that begins so goes on as it began, and one that did not goes on where it was."""
    first = tmp_path / "first"
    trained_in(first, stage(data, checkpoint={"every": 1}))
    anew = {"corpora": [{"path": str(data / "corpus"), "begin": "anew"}]}
    load = {"load": str(first / "checkpoints"), "every": 1}
    for name, begins in (("late", {}), ("from the start", anew)):
        content = stage(data, name="second", checkpoint=load, data=begins)
        told = trained_in(tmp_path / name, content)
        again = (
            "data.corpora.0.begin: anew has corpus read again from its first sample; the run has "
            "read 8 samples of it"
        )
        assert (again in notes(told)) == (name != "late")
        content["training"]["steps"], content["data"] = 2, content["data"] | anew
        told = trained_in(tmp_path / name, content)
        late = "data.corpora.0.begin: anew holds where a stage begins; corpus goes on at its sample"
        assert (f"{late} 16" in notes(told)) == (name == "late")
