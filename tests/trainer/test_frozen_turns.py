"""What is new trains alone while masks open in turn, and a run may stop anywhere on the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted
from numpy.typing import NDArray
from often import often
from old_entries import old_entries
from signalled_rank import VARIABLE, signalled
from stage_runs import LARGE, make_data, metrics, saved, write_stage
from trained_here import small, trained, trained_in
from warm_ranks import train_warm

import flmgrow

Values = dict[str, NDArray[Any]]

BEGIN, STEPS, RAMP = 2, 9, 2
END = BEGIN + STEPS
RULES = [
    {"layers": "0-1"},
    {"tensors": ["embedding"]},
    {"old": True, "tensors": ["query", "up"]},
    {"layers": 3, "axes": {"ffn": "100-175"}},
]
TERMINATED = 128 + 15

RUNS: dict[str, dict[str, Any]] = {
    "old, until the second turn": {"training": {"freeze": "old", "unfreeze_at": 3}},
    "rules, until the third, 16 bits": {
        "training": {"freeze": RULES, "unfreeze_at": 5, "precision": "bfloat16"},
        "checkpoint": {"format": "megatron"},
    },
    "old, for ever": {"training": {"freeze": "old"}, "checkpoint": {"format": "megatron"}},
    "rules, until the last": {"training": {"freeze": RULES, "unfreeze_at": 7}},
}
RANKS: dict[str, dict[str, Any]] = {
    "tensor": {"layout": {"tp": 2, "sequence_parallel": True}},
    "pipeline, legacy": {"layout": {"pp": 2}, "checkpoint": {"format": "megatron"}},
    "replicas": {"layout": {"dp": 2, "distributed_optimizer": True}},
}
MOMENTS = {"step 4": 4, "step 5": 5, "save 5": 6, "beginning 5": 6, "step 6": 6}
"""Where a signal comes around the step of unfreezing, the fifth, and the step that a run stops at:
the next one that it can save.
"""
OFTEN = {(0, 5), (0, 9)}
"""The kills that every run of the slow tests tries: of which run, and after which step."""
TURNS = ("depth", "ffn", "heads", "width")
"""As ``flmgrow.json`` lists them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small stage trained, grown in all dimensions by masks."""
    folder = tmp_path_factory.mktemp("start")
    trained_in(folder, small(data, training={"steps": BEGIN}, checkpoint={"every": BEGIN}))
    ramp = ("--method", "mask", "--ramp-steps", RAMP)
    accepted("expand", folder / "checkpoints", folder / "grown", *LARGE, *ramp)
    return folder / "grown"


def stage(data: Path, load: Path, /, **changes: Any) -> dict[str, Any]:
    content = small(
        data,
        name="large",
        model={},
        training={"steps": STEPS},
        checkpoint={"load": str(load), "every": 1},
        masks={"in_turn": True},
        optimizer={"weight_decay": 0.1},
        learning_rate={"peak": 3e-3, "style": "constant", "warmup_samples": 0},
    )
    for name, values in changes.items():
        content[name] = {**content.get(name, {}), **values}
    return content


@pytest.fixture(scope="module")
def whole(
    data: Path,
    start: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trained_in(folder, stage(data, start, **RUNS[request.param]))
    return folder / "stage.yaml"


def back_to(path: Path, iteration: int, folder: Path) -> Path:
    """Return a copy of a run that was killed once it had saved a checkpoint."""
    copied = Path(shutil.copytree(path.parent, folder))
    place = copied / "checkpoints"
    for number in range(iteration + 1, END + 1):
        shutil.rmtree(place / f"iter_{number:07d}")
    (place / "latest_checkpointed_iteration.txt").write_text(f"{iteration}")
    return copied / "stage.yaml"


def values(stage: Path, iteration: int) -> Values:
    with flmgrow.open(stage.parent / "checkpoints" / f"iter_{iteration:07d}") as source:
        return {name: np.array(source.tensor(name).values) for name in source.tensors}


def opening(stage: Path, iteration: int) -> dict[str, float]:
    """Return the values of the masks of a checkpoint that are not open yet."""
    masks = json.loads(saved(stage, iteration)["flmgrow_training.json"])["masks"]
    return {name: mask["value"] for name, mask in masks.items()}


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["old, until the second turn"], indirect=True)
def test_old_waits_for_its_step_and_fresh_for_its_turn(
    data: Path, start: Path, whole: Path, tmp_path: Path
) -> None:
    """Old entries are what they were until they are unfrozen, and those of a turn until it comes;
    the model begins as the small one, whatever is drawn.
    """
    before = start.parent / "checkpoints"
    trained_in(tmp_path, stage(data, before, training={"steps": 1}, masks={"in_turn": False}))
    small_loss = metrics(tmp_path / "stage.yaml")[0]["loss"]
    assert metrics(whole)[0]["loss"] == pytest.approx(small_loss, abs=2e-6)
    old = old_entries(start)
    with flmgrow.open(start) as source:
        known = {name: np.array(source.tensor(name).values) for name in source.tensors}
    unfreezes = BEGIN + 3
    for iteration in range(BEGIN + 1, END + 1):
        now, last = values(whole, iteration), opening(whole, iteration)
        assert list(last) == list(TURNS[-len(last) :] if last else ())
        same = all(np.array_equal(now[name][old[name]], known[name][old[name]]) for name in now)
        assert same == (iteration <= unfreezes), iteration
        # Fresh channels write and read nothing before the last turn.
        fresh = {name: now[name][..., 32:] for name in ("embedding", "up")}
        waits = all(np.array_equal(each, known[name][..., 32:]) for name, each in fresh.items())
        assert waits == (last.get("width", 1) == 0 or iteration == BEGIN + 7), iteration
    assert opening(whole, unfreezes) == {"ffn": 0.5, "heads": 0.0, "width": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "kept"),
    [
        pytest.param(name, kept, marks=() if (number, kept) in OFTEN else pytest.mark.long)
        for number, name in enumerate(RUNS)
        for kept in range(BEGIN + 1, END)
    ],
    indirect=["whole"],
)
def test_a_kill_in_any_turn_changes_no_bit(whole: Path, tmp_path: Path, kept: int) -> None:
    broken = back_to(whole, kept, tmp_path / "broken")
    trained(broken)
    assert saved(broken, END) == saved(whole, END)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["old, until the second turn"], indirect=True)
@pytest.mark.parametrize("when", often(MOMENTS, "step 5", "beginning 5"))
def test_a_signal_at_the_step_of_unfreezing_changes_no_bit(
    whole: Path, tmp_path: Path, when: str
) -> None:
    broken = back_to(whole, BEGIN + 1, tmp_path / "broken")
    with signalled(when) as came:
        told = trained(broken, TERMINATED)
    assert came
    assert f"stopped at step {MOMENTS[when]}; the same command resumes" in told
    trained(broken)
    assert saved(broken, END) == saved(whole, END)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("name", RANKS)
def test_ranks_of_which_one_is_signalled_there_change_no_bit(
    data: Path, start: Path, tmp_path: Path, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = stage(data, start, training={"freeze": "old", "unfreeze_at": 3}, **RANKS[name])
    whole = write_stage(tmp_path / "whole", content)
    train_warm(whole)
    broken = write_stage(tmp_path / "broken", content)
    monkeypatch.setenv(VARIABLE, when)
    told = train_warm(broken, TERMINATED, "signalled_rank")
    assert f"stopped at step {MOMENTS[when]}; the same command resumes" in told
    train_warm(broken)
    assert saved(broken, END) == saved(whole, END)
