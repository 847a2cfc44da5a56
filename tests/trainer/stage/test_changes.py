"""Settings may change in the middle of a stage: it is told and written down, never silent.

What a stage was asked for stays: so many tokens, and a rate that follows them.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage_runs import make_data, metrics, write_stage
from trained_here import small, trained, trained_in

from flmgrow.errors import BadDataError
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.trainer.stage.changes import CHANGES, Change, read_changes, record
from flmgrow.trainer.stage.clock import Clock, StageProgress, clock_of, steps_left
from flmgrow.trainer.stage.file import read_stage

TRACKER = "latest_checkpointed_iteration.txt"
TOKENS = 12 * 8 * 32
"""Of twelve steps of the usual batch."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def twelve(data: Path, /, **changes: Any) -> dict[str, Any]:
    """Return a stage of twelve steps, saved after each fourth."""
    content = small(data)
    content["training"] = {"tokens": TOKENS, "batch": 8, "micro_batch": 4}
    content["checkpoint"] = {"every": 4}
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value}
    return content


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage that ran undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trained_in(folder, twelve(data))
    return folder


@pytest.fixture
def at_four(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that goes on from its fourth step."""
    return at(4, whole, tmp_path)


def at(step: int, whole: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(whole, tmp_path / "copied"))
    (folder / "checkpoints" / TRACKER).write_text(str(step))
    return folder


def told_changes(folder: Path) -> list[tuple[int, str, Any, Any]]:
    return [(c.step, c.key, c.before, c.after) for c in read_changes(folder / CHANGES)]


def test_another_batch_ends_at_the_same_tokens_and_goes_on_at_the_same_rate(
    data: Path, whole: Path, at_four: Path
) -> None:
    told = trained_in(at_four, twelve(data, training={"batch": 4}))
    assert "note: training.batch is 4 after step 4, was 8\n" in told
    before, after = metrics(whole / "stage.yaml"), metrics(at_four / "stage.yaml")
    assert before[-1]["tokens"] == after[-1]["tokens"] == TOKENS
    assert after[-1]["step"] == 4 + 2 * 8
    rates = [record["learning_rate"] for record in after]
    assert rates[:4] == [record["learning_rate"] for record in before[:4]]
    assert rates[4::2] == [record["learning_rate"] for record in before[4:]]
    assert told_changes(at_four) == [(4, "training.batch", 8, 4)]
    (line,) = map(json.loads, (at_four / CHANGES).read_text().splitlines())
    assert "@" in line["who"]
    assert line["date"].startswith("20")
    assert "there is nothing to do" in trained(at_four / "stage.yaml")


def test_what_goes_on_unchanged_tells_of_no_change(data: Path, at_four: Path) -> None:
    told = trained_in(at_four, twelve(data, log={"every": 3}, guard={"window": 50}))
    assert "note" not in told
    assert not (at_four / CHANGES).exists()


def test_steps_are_the_clock_where_all_is_said_in_steps(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """The rate goes on where it is, and falls until the last of as many steps as were asked for."""
    content = twelve(data, training={"tokens": None, "steps": 12})
    folder = tmp_path / "steps"
    trained_in(folder, content)
    assert rates(folder) == rates(whole)
    (folder / "checkpoints" / TRACKER).write_text("4")
    content["training"]["batch"] = 16
    trained_in(folder, content)
    assert rates(folder) == rates(whole)


def rates(folder: Path) -> list[float]:
    return [record["learning_rate"] for record in metrics(folder / "stage.yaml")]


def test_from_an_earlier_checkpoint_on(data: Path, whole: Path, tmp_path: Path) -> None:
    """It goes back once, and on the same call after that goes on where it is."""
    folder = at(12, whole, tmp_path)
    lower = twelve(data, learning_rate={"peak": 1e-3}, checkpoint={"change_at": 4})
    told = trained_in(folder, lower)
    assert "note: checkpoint.change_at: goes back from iteration 12 to 4\n" in told
    assert "note: learning_rate.peak is 0.001 after step 4, was 0.003\n" in told
    assert [record["step"] for record in metrics(folder / "stage.yaml")] == list(range(1, 13))
    assert rates(folder)[:4] == rates(whole)[:4]
    assert rates(folder)[4:] == pytest.approx([rate / 3 for rate in rates(whole)[4:]])
    assert "there is nothing to do" in trained(folder / "stage.yaml")
    (folder / "checkpoints" / TRACKER).write_text("8")
    assert "goes on from step 8\n" in trained(folder / "stage.yaml")
    assert told_changes(folder) == [(4, "learning_rate.peak", 0.003, 0.001)]


@pytest.mark.slow
def test_from_another_iteration_on_with_the_same_settings(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Whoever names an earlier checkpoint goes back to it, once for each that is named."""
    folder = at(12, whole, tmp_path)
    for iteration in (8, 4):
        told = trained_in(folder, twelve(data, checkpoint={"change_at": iteration}))
        assert f"note: checkpoint.change_at: goes back from iteration 12 to {iteration}\n" in told
        assert "there is nothing to do" in trained(folder / "stage.yaml")
    assert rates(folder) == rates(whole)
    assert not (folder / CHANGES).exists()


def test_an_earlier_versions_checkpoint_does_not_say_from_where_on(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    folder = at(12, whole, tmp_path)
    for path in (folder / "checkpoints").glob("iter_*"):
        state = read_training_state(path)
        assert state is not None
        settings = {k: v for k, v in state.settings.items() if k != "checkpoint.change_at"}
        assert len(settings) < len(state.settings)
        (path / TRAINING).write_bytes(replace(state, settings=settings).encode())
    told = trained_in(folder, twelve(data, checkpoint={"change_at": 8}))
    assert "there is nothing to do" in told


def test_from_the_begin_of_the_stage_on(data: Path, whole: Path, tmp_path: Path) -> None:
    folder = at(12, whole, tmp_path)
    told = trained_in(folder, twelve(data, training={"batch": 16}, checkpoint={"change_at": 0}))
    assert "note: checkpoint.change_at: goes back from iteration 12 to 0\n" in told
    assert "tells of 12 steps of this stage, which begins anew all the same" in told
    assert len(metrics(folder / "stage.yaml")) == 6
    assert (folder / "checkpoints" / TRACKER).read_text() == "6"
    assert told_changes(folder) == [(0, "training.batch", 8, 16)]


def test_a_killed_change_is_made_again_and_written_once(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    folder = at(8, whole, tmp_path)
    content = twelve(data, optimizer={"weight_decay": 0.2}, checkpoint={"change_at": 4})
    trained_in(folder, content)
    for name in ("iter_0000008", "iter_0000012"):
        shutil.rmtree(folder / "checkpoints" / name)
        shutil.copytree(whole / "checkpoints" / name, folder / "checkpoints" / name)
    (folder / "checkpoints" / TRACKER).write_text("12")
    assert "goes back from iteration 12 to 4" in trained(folder / "stage.yaml")
    assert told_changes(folder) == [(4, "optimizer.weight_decay", 0.1, 0.2)]


def test_other_data_from_a_checkpoint_on(data: Path, at_four: Path) -> None:
    """Refused as long as nobody says from where on; then both values are told."""
    refused = trained_in(at_four, twelve(data, data={"seed": 7}), expect=2)
    assert "of other data: data.seed is 1234, now 7" in refused
    assert "or let it be other data from here on (checkpoint.change_at: 4)" in refused
    assert "anew" not in refused, "nothing begins where a stage goes on"
    content = twelve(data, data={"seed": 7}, checkpoint={"change_at": 4})
    assert "note: data.seed is 7 after step 4, was 1234\n" in trained_in(at_four, content)
    assert metrics(at_four / "stage.yaml")[-1]["samples"] == 12 * 8
    assert told_changes(at_four) == [(4, "data.seed", 1234, 7)]


@pytest.mark.parametrize("step", [3, 16])
def test_a_checkpoint_that_is_not_there_is_refused(data: Path, at_four: Path, step: int) -> None:
    content = twelve(data, optimizer={"beta1": 0.8}, checkpoint={"change_at": step})
    told = trained_in(at_four, content, expect=2)
    assert f"has no checkpoint of iteration {step}, from which on checkpoint.change_at" in told
    assert "hint: saved are 4, 8, 12; the iteration at which the stage begins will do, too" in told


def test_a_stage_that_has_saved_nothing_changes_at_its_begin(data: Path, tmp_path: Path) -> None:
    content = twelve(data, training={"tokens": 256}, checkpoint={"change_at": 4})
    told = trained_in(tmp_path, content, expect=2)
    assert "hint: the stage begins at iteration 0: say that, or leave it out" in told
    trained_in(tmp_path, twelve(data, training={"tokens": 256}, checkpoint={"change_at": 0}))


@pytest.mark.slow
def test_the_guards_hint_does_what_it_says(data: Path, tmp_path: Path) -> None:
    """That of the step before decides on the loss; one further back is named, and the begin, as
    this model is lost there as well.
    """
    guard = {"spike": 2.0, "window": 4}
    rate = {"peak": 30.0, "warmup_samples": 88}
    told = trained_in(
        tmp_path, twelve(data, learning_rate=rate, checkpoint={"every": 2}, guard=guard), 7
    )
    (said,) = re.findall(
        r"say checkpoint.change_at: (2) \(or that of an earlier one, from 0 on\)", told
    )
    for at, peak, code in ((int(said), 3e-3, 7), (0, 2e-3, 0)):
        rate = {"peak": peak}
        checkpoint = {"every": 2, "change_at": at}
        content = twelve(data, learning_rate=rate, checkpoint=checkpoint, guard=guard)
        told = trained_in(tmp_path, content, code)
        assert f"note: learning_rate.peak is {peak} after step {at}, was " in told
    assert metrics(tmp_path / "stage.yaml")[-1]["tokens"] == TOKENS


def test_random_states_that_are_lost_are_told(data: Path, at_four: Path) -> None:
    shutil.rmtree(at_four / "checkpoints" / "iter_0000004" / "random_states")
    told = trained_in(at_four, twelve(data))
    assert (
        "random_states has those of 0 ranks, this run has 1: sources of chance begin anew" in told
    )


def test_checkpoints_that_are_lost_are_told(data: Path, at_four: Path) -> None:
    shutil.rmtree(at_four / "checkpoints")
    told = trained_in(at_four, twelve(data, training={"tokens": 256}))
    assert "metrics.jsonl tells of 12 steps of this stage, which begins anew" in told
    assert (at_four / "metrics.jsonl.old").exists()


def test_both_clocks_show_the_same_while_the_batch_stays(data: Path, tmp_path: Path) -> None:
    tokens = read_stage(write_stage(tmp_path, twelve(data)))
    steps = read_stage(write_stage(tmp_path, twelve(data, training={"tokens": None, "steps": 12})))
    now = StageProgress(5, 5 * 8 * 32, 8)
    assert clock_of(tokens, now) == clock_of(steps, now) == Clock(40, 8, 8, 96)
    assert steps_left(tokens, now) == steps_left(steps, now) == 7
    assert steps_left(tokens, StageProgress(2, 20 * 256, 8)) == 0
    assert steps_left(tokens, StageProgress(5, 5 * 256 + 100, 8)) == 7


def test_a_file_of_changes_is_only_added_to(tmp_path: Path) -> None:
    path = tmp_path / CHANGES
    first = Change("small", 4, "training.batch", 8, 4, StageProgress(4, 1024, 8))
    record(path, [first])
    before = path.read_bytes()
    record(
        path, [first, Change("small", 8, "optimizer.beta1", 0.9, None, StageProgress(12, 2048, 8))]
    )
    assert path.read_bytes().startswith(before)
    assert [change.key for change in read_changes(path)] == ["training.batch", "optimizer.beta1"]
    path.write_text("{}\n")
    with pytest.raises(BadDataError, match=f"{CHANGES}:1: holds no change of a setting"):
        read_changes(path)
