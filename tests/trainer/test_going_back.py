"""After a spike a run goes back past the batches that led to it, the same however it is killed.

The batch whose last sample of the run is ``POISON`` has a loss that is not finite. This file, run
as a script, is a rank of a stage that reads it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from often import often
from stage_runs import environment, make_data, metrics, saved, write_stage
from trained_here import small, trained

from flmgrow.errors import BadCheckpointError, DivergenceError, StorageError
from flmgrow.formats.history.readings import PassedOver
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import TrainingState, read_training_state
from flmgrow.trainer import going_back
from flmgrow.trainer.checkpoint import aside
from flmgrow.trainer.checkpoint.rollbacks import (
    ROLLBACKS,
    Rollback,
    place_at,
    read_rollbacks,
    way_back,
    write_rollbacks,
)
from flmgrow.trainer.data.batches import Batches, MicroBatches
from flmgrow.trainer.guarding import RunGuard
from flmgrow.trainer.loop import TrainingRun
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.samples_read import samples_of_step
from flmgrow.trainer.stage.changes import CHANGES, read_changes

SLOW = pytest.mark.slow
BATCH, STEPS, EVERY = 8, 12, 3
POISON = 8 * BATCH
"""Read by step 8; the checkpoint of step 6 lies in the window before that, that of 3 does not."""


def poison(samples: int = POISON) -> None:
    """Let the loss of the step that reads up to there not be finite, in this process."""
    honest = RunGuard.check_step

    def check(guard: RunGuard, record: StepRecord, batch: int) -> None:
        is_bad = record.samples == samples
        honest(guard, replace(record, loss=float("nan")) if is_bad else record, batch)

    RunGuard.check_step = check  # type: ignore[assignment, method-assign]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunGuard, "check_step", RunGuard.check_step)  # what poison changes, goes
    poison()


def stage_in(folder: Path, data: Path, /, **changes: Any) -> Path:
    guard = {"action": "rollback", "window": 3, **changes.pop("guard", {})}
    steps = changes.pop("training_steps", STEPS)
    more = changes.pop("training_more", {})
    training = {"steps": steps, "batch": BATCH, "micro_batch": 4, **more}
    checkpoint = {"every": EVERY, **changes.pop("checkpoint", {})}
    content = small(data, guard=guard, training=training, checkpoint=checkpoint, **changes)
    return write_stage(folder, content)


def state(stage: Path, iteration: int = STEPS) -> TrainingState:
    found = read_training_state(stage.parent / "checkpoints" / f"iter_{iteration:07d}")
    assert found is not None
    return found


def told_of(stage: Path) -> list[dict[str, Any]]:
    """Its metrics, times aside."""
    timed = ("seconds", "tokens_per_second", "model_tflops")
    return [{k: v for k, v in each.items() if k not in timed} for each in metrics(stage)]


def weights(stage: Path) -> dict[str, bytes]:
    """The files of the last checkpoint, but for what it remembers."""
    return {name: data for name, data in saved(stage, STEPS).items() if name != TRAINING}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that met the poison, went back and came to its end undisturbed."""
    stage = stage_in(tmp_path_factory.mktemp("whole"), data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunGuard, "check_step", RunGuard.check_step)
        poison()
        told = trained(stage)
    assert (
        "step 8: loss nan: goes back to the checkpoint of step 3, and passes over samples 24 to 63 "
        "(1 of 3 times); later checkpoints are in"
    ) in told
    assert "the next sample is 64 after step 3, was 24" in told
    return stage


def test_it_goes_on_past_what_led_to_the_spike(whole: Path) -> None:
    steps = metrics(whole)
    assert [each["step"] for each in steps] == list(range(1, STEPS + 1))
    read = [BATCH * step for step in (1, 2, 3, *range(9, 18))]
    assert [each["samples"] for each in steps] == read
    assert steps[-1]["tokens"] == STEPS * BATCH * 32  # what it trained on, and no more
    carried = state(whole).carried
    assert (carried.consumed_samples, carried.tokens) == (read[-1], steps[-1]["tokens"])
    assert carried.passed_over == [PassedOver(begin=24, end=64)]
    (reading,) = carried.readings
    assert (reading.corpora[0].begin, reading.corpora[0].end) == (0, read[-1])
    (rollback,) = read_rollbacks(whole.parent / "checkpoints")
    assert (rollback.step, rollback.to, rollback.begin, rollback.end) == (8, 3, 24, 64)
    (change,) = read_changes(whole.parent / CHANGES)
    assert (change.step, change.before, change.after) == (3, 24, 64)
    beside = whole.parent / "checkpoints.diverged"
    assert [each.name for each in beside.iterdir()] == ["iter_0000006"]


def test_it_trains_as_one_whose_data_lacks_these_samples(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Batches.__iter__

    def without(batches: Batches) -> Iterator[MicroBatches]:
        steps = honest(batches)
        while True:
            batches.consumed = {24: 64}.get(batches.consumed, batches.consumed)
            yield next(steps)

    monkeypatch.setattr(Batches, "__iter__", without)
    plain = stage_in(tmp_path, data, guard={"action": "stop"})
    trained(plain)
    assert told_of(plain) == told_of(whole)
    assert weights(plain) == weights(whole)


def test_the_steps_that_are_shown_are_those_that_were_taken(whole: Path) -> None:
    """From the checkpoint that it went back to, and from behind it."""
    for record in metrics(whole)[::2]:
        numbers = [each["number"] for each in samples_of_step(whole, record["step"])]
        assert numbers == list(range(record["samples"] - BATCH, record["samples"]))


@pytest.mark.usefixtures("poisoned")
def test_a_run_that_shall_stop_does(data: Path, tmp_path: Path) -> None:
    stage = stage_in(tmp_path, data, guard={"action": "stop"})
    assert "step 8: loss nan" in trained(stage, DivergenceError.exit_code)
    assert state(stage, 6).carried.passed_over == []
    assert not (tmp_path / "checkpoints" / ROLLBACKS).exists()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "place",
    [
        "writing",
        "before a save",
        *(pytest.param(each, marks=SLOW) for each in ("moving", "first step", "behind it")),
    ],
)
def test_killed_anywhere_it_ends_the_same(
    place: str, whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path, data)
    error = StorageError("the disk is gone")

    def broken(*_: object) -> None:
        raise error

    def fails_at(step: int) -> None:
        honest = TrainingRun._take

        def take(run: TrainingRun, batches: Iterator[MicroBatches]) -> None:
            if run._progress.iteration == step - 1 and run._batches.consumed >= POISON:
                broken()
            honest(run, batches)

        patched.setattr(TrainingRun, "_take", take)

    with monkeypatch.context() as patched:
        if place == "moving":
            patched.setattr(aside, "sync_folder", broken)
        elif place == "writing":
            patched.setattr(going_back, "write_rollbacks", broken)
        else:
            fails_at({"first step": 4, "before a save": 6, "behind it": 8}[place])
        assert "the disk is gone" in trained(stage, StorageError.exit_code)
    trained(stage)
    assert told_of(stage) == told_of(whole)
    assert weights(stage) == weights(whole)
    assert state(stage).carried == state(whole).carried


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
def test_without_a_checkpoint_it_goes_back_to_its_begin_and_at_last_stops(
    data: Path, tmp_path: Path
) -> None:
    poison(POISON + 2 * BATCH)
    stage = stage_in(tmp_path, data, checkpoint={"every": None}, guard={"rollbacks": 1})
    told = trained(stage, DivergenceError.exit_code)
    assert "goes back to what the stage begins with, and passes over samples 0 to 63" in told
    assert "step 2: loss nan" in told
    assert "hint: it has gone back 1 of 1 times (guard.rollbacks); " in told
    stage = stage_in(tmp_path, data, checkpoint={"every": None}, guard={"rollbacks": 2})
    assert "passes over samples 0 to 79 (2 of 2 times)" in trained(stage)
    assert metrics(stage)[0]["samples"] == POISON + 3 * BATCH
    assert state(stage).carried.passed_over == [PassedOver(begin=0, end=POISON + 2 * BATCH)]


@pytest.mark.slow
def test_it_never_goes_back_to_what_was_trained_otherwise(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From iteration 3 on other settings hold; the old run's checkpoint of 6 still lies there."""
    trained(stage_in(tmp_path, data))
    monkeypatch.setattr(RunGuard, "check_step", RunGuard.check_step)
    poison()
    changed: dict[str, Any] = {
        "learning_rate": {"peak": 1e-3},
        "checkpoint": {"change_at": 3, "every": 5},
        "guard": {"window": 1},
    }
    told = trained(stage_in(tmp_path, data, **changed))
    assert "goes back from iteration 12 to 3" in told
    assert "step 8: loss nan: goes back to the checkpoint of step 5, and passes over" in told
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "checkpoints", again / "checkpoints")
    for left in (again / "checkpoints").glob("iter_*"):
        if left.name > "iter_0000005":
            shutil.rmtree(left)
    (again / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    trained(stage_in(again, data, **changed))
    one, two = (weights(folder / "stage.yaml") for folder in (tmp_path, again))
    assert one == two


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("at", [0, 3])
def test_settings_that_hold_from_an_iteration_on_are_gone_back_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Where nothing was saved since, it is their own begin; and the same command goes on there."""
    with monkeypatch.context() as patched:
        patched.undo()
        trained(stage_in(tmp_path, data, guard={"action": "stop"}, training_steps=6))
    changed = {"learning_rate": {"peak": 1e-3}, "checkpoint": {"change_at": at, "every": 20}}
    told = trained(stage_in(tmp_path, data, **changed))
    where = "the checkpoint of step 3" if at else "what the stage begins with"
    assert f"goes back to {where}, and passes over samples {at * BATCH} to 63 (1 of 3" in told
    assert metrics(tmp_path / "stage.yaml")[at]["samples"] == POISON + BATCH
    assert state(tmp_path / "stage.yaml").carried.passed_over == [
        PassedOver(begin=at * BATCH, end=POISON)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("keep", "back"), [(1, 6), (2, 3)])
def test_what_is_kept_is_what_it_can_go_back_to(
    data: Path, tmp_path: Path, keep: int, back: int
) -> None:
    stage = stage_in(tmp_path, data, checkpoint={"keep": keep})
    told = trained(stage)
    assert f"goes back to the checkpoint of step {back}, and passes over" in told
    left = sorted(each.name for each in (tmp_path / "checkpoints").glob("iter_*"))
    assert left == [f"iter_{n:07d}" for n in (9, 12)][-keep:]
    assert metrics(stage)[-1]["step"] == STEPS


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
def test_what_has_been_unfrozen_is_frozen_again_where_it_was(data: Path, tmp_path: Path) -> None:
    frozen = {"freeze": {"layers": 0}, "unfreeze_at": 5}
    stage = stage_in(tmp_path, data, training_more=frozen, guard={"window": 4})
    told = trained(stage)
    assert told.count("parameters do not train, until step 5") == 2
    assert "goes back to the checkpoint of step 3, and passes over samples 24 to 63" in told
    assert {lag for (name, _), lag in state(stage).lags.items() if name == "query"} == {5}


LAYOUTS: dict[str, dict[str, Any]] = {
    "replicas": {"dp": 2},
    "tensor ranks": {"tp": 2, "sequence_parallel": True},
    "pipeline ranks": {"pp": 2},
    "replicas that share an optimizer": {"dp": 2, "distributed_optimizer": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", often(LAYOUTS, "pipeline ranks", "replicas that share an optimizer")
)
def test_ranks_go_back_together(data: Path, tmp_path: Path, name: str) -> None:
    stage = stage_in(tmp_path, data, layout=LAYOUTS[name], checkpoint={"keep": 2})
    told = train_ranks(stage)
    assert told.count("goes back to the checkpoint of step 3") == 1
    assert state(stage).carried.passed_over == [PassedOver(begin=24, end=64)]
    assert [each["samples"] for each in metrics(stage)][3] == 72
    steps, files, saves = told_of(stage), weights(stage), tmp_path / "checkpoints"
    assert sorted(each.name for each in saves.glob("iter_*")) == ["iter_0000009", "iter_0000012"]
    shutil.rmtree(saves / "iter_0000012")
    (saves / "latest_checkpointed_iteration.txt").write_text("9")
    assert "goes back" not in train_ranks(stage)
    assert (told_of(stage), weights(stage)) == (steps, files)


def train_ranks(stage: Path) -> str:
    """Train a stage on two ranks, which are poisoned; return what they told."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    support = str(Path(__file__).parents[1] / "support")
    done = subprocess.run(
        [*words, __file__, str(stage)], env={**environment(), "PYTHONPATH": support},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def of(to: int, begin: int, end: int) -> Rollback:
    return Rollback(step=to + 9, to=to, begin=begin, end=end, why="")


def test_what_lies_behind_a_later_rollback_holds_no_more() -> None:
    def by_batch(iteration: int) -> int:
        return iteration * BATCH

    found = [of(6, 48, 80), of(3, 24, 96), of(3, 24, 104), of(7, 136, 152)]
    assert place_at(found, 0, 0, by_batch, 3) == 104
    assert place_at(found, 3, 24, by_batch, 5) == 104 + 2 * BATCH
    assert place_at(found, 0, 0, by_batch, 8) == 152 + BATCH
    assert place_at(found, 4, 112, by_batch, 6) == 112 + 2 * BATCH
    assert place_at(found, 3, 25, by_batch, 3) == 25  # another run's


def test_the_way_back_leads_before_the_window() -> None:
    saved = (3, 6, 9, 12, 15)
    assert way_back((), 12, 3) is None
    assert way_back(saved, 12, 3) == 9
    assert way_back(saved, 12, 4) == 6
    assert way_back(saved, 12, 50) == 3
    assert way_back(saved, 3, 1) is None


def test_a_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    write_rollbacks(tmp_path, [of(3, 24, 64)])
    assert read_rollbacks(tmp_path) == [of(3, 24, 64)]
    content = json.loads((tmp_path / ROLLBACKS).read_text())
    content["rollbacks"][0]["end"] = 65
    (tmp_path / ROLLBACKS).write_text(json.dumps(content))
    with pytest.raises(BadCheckpointError, match="its own sum does not match"):
        read_rollbacks(tmp_path)


if __name__ == "__main__":
    from flmgrow.trainer import __main__

    poison()
    sys.exit(__main__.main())
