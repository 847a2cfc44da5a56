"""A run goes on from whatever lies in its folder, and never past a growth that is not verified.

One small run is really carried out. Where only the order of steps matters, a stand-in for each
command puts in place what that run made.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import accepted, flmgrow
from stage_runs import (
    MANIFEST,
    STEPS,
    edit,
    environment,
    make_data,
    prepared,
    schedule_data,
    stand_in,
    write_schedule,
)  # fmt: skip

from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest import family, read_manifest, training_of
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.tensors import parameter_count
from flmgrow.stages.runner import StepNotDoneError, launch, run_steps
from flmgrow.stages.schedule import read_schedule
from flmgrow.stages.steps import steps_of
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord

ORDER = ["train", "expand", "verify", "train"]


SMALL, START, LARGE = "01-small/checkpoints", "02-large/start", "02-large/checkpoints"


DIFFERENT = {"equal": False, "source": "checkpoints"}
UNPROVEN = {"equal": True, "proven": False, "missing": ["elements"], "source": "checkpoints"}


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedule")
    return write_schedule(folder, schedule_data(make_data(folder / "data")))


@pytest.fixture(scope="module")
def finished(schedule: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was carried out."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow", "run", str(schedule), "--out", str(out)],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out / '02-large' / 'checkpoints'}\n"
    return out


def test_everything_lies_in_its_folder(schedule: Path, finished: Path) -> None:
    assert (finished / "schedule.yaml").read_bytes() == schedule.read_bytes()
    small, large = finished / "01-small", finished / "02-large"
    assert {path.name for path in small.iterdir()} == {"stage.yaml", "checkpoints", "metrics.jsonl"}
    assert {path.name for path in large.iterdir()} == {
        "stage.yaml", "growth.yaml", "start", "checkpoints", "metrics.jsonl",
    }  # fmt: skip
    manifest = read_manifest(large / "start")
    assert manifest is not None
    assert manifest.receipt is not None
    assert manifest.receipt.equal


def test_the_next_stage_goes_on_where_the_one_before_ended(finished: Path) -> None:
    stages = [read_metrics(finished / name / "metrics.jsonl") for name in ("01-small", "02-large")]
    steps = [record for stage in stages for record in stage if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == list(range(1, 2 * STEPS + 1))
    assert [record.samples for record in steps] == [8 * record.step for record in steps]
    assert steps[STEPS].masks == {"width": 0, "heads": 0, "ffn": 0, "depth": 0}
    assert steps[-1].masks == {}
    with open_checkpoint(finished / "02-large" / "checkpoints") as checkpoint:
        carried = training_of(checkpoint)
        assert carried is not None
        assert carried.consumed_samples == 2 * STEPS * 8
        assert str(checkpoint.layout) == "TP2 x PP1"


def test_no_path_of_the_run_gets_into_a_checkpoint(finished: Path) -> None:
    """Else a run that was moved, or repeated elsewhere, would save other bytes."""
    with open_checkpoint(finished / "02-large" / "checkpoints") as checkpoint:
        assert [member.name for member in family(checkpoint)] == ["small", "start", "large"]
    for path in finished.rglob("*"):
        if path.is_file() and "iter_" in str(path):
            assert bytes(finished.parent) not in path.read_bytes(), path


def test_a_run_that_is_done_does_nothing(schedule: Path, finished: Path) -> None:
    outcome = accepted("run", schedule, "--out", finished)
    assert outcome.err == ""
    assert outcome.out == f"{finished / '02-large' / 'checkpoints'}\n"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run that was carried out, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ([SMALL], []),
        (["01-small", LARGE], ["train"]),
        ([SMALL, START], []),
        ([START], []),
        ([LARGE], ["train"]),
        ([START, LARGE], ORDER[1:]),
        ([SMALL, START, LARGE], ORDER),
    ],
)
def test_what_was_grown_and_verified_outlives_its_source(
    schedule: Path, finished: Path, copied: Path, gone: list[str], left: list[str]
) -> None:
    """The last two are the control: where nothing speaks of a stage any more, it is done again."""
    for name in gone:
        shutil.rmtree(copied / name)
    folder, steps = prepared(schedule, copied)
    ran: list[str] = []
    assert run_steps(steps, stand_in(finished, folder, ran), lambda _: None) == 0
    assert ran == left
    assert all(step.done() for step in steps)


@pytest.mark.parametrize(
    "receipt", [None, DIFFERENT, UNPROVEN], ids=["none", "different", "unproven"]
)
@pytest.mark.parametrize("gone", [SMALL, f"{SMALL}/iter_0000006"])
def test_a_start_without_proof_or_source_stops_the_run(
    schedule: Path, copied: Path, receipt: Any, gone: str
) -> None:
    edit(copied / START / MANIFEST, receipt=receipt)
    prepared(schedule, copied)  # the source is there: it can be verified
    shutil.rmtree(copied / gone)
    outcome = flmgrow("run", schedule, "--out", copied)
    assert outcome.code == 2
    assert f"error: {copied / START}: is not verified, and what it grew from is no" in outcome.err
    assert "hint: restore those checkpoints" in outcome.err


def test_training_that_passed_no_gate_proves_nothing(schedule: Path, copied: Path) -> None:
    """What a stage has saved tells of its start, verified or not."""
    for path in (copied / LARGE).glob("iter_*/flmgrow_training.json"):
        (*ancestors, start) = json.loads(path.read_text())["family"]
        edit(path, family=[*ancestors, {**start, "receipt": None}])
    shutil.rmtree(copied / START)
    _, steps = prepared(schedule, copied)
    assert [step.done() for step in steps] == [True, False, False, True]
    shutil.rmtree(copied / SMALL)
    with pytest.raises(UsageError, match="is not verified, and what it grew from"):
        prepared(schedule, copied)


def test_all_that_came_before_a_verified_growth_is_done(
    schedule: Path, finished: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(schedule.read_text())
    content["stages"].append({"name": "again", "training": {"steps": 2}})
    longer = write_schedule(tmp_path, content)
    large = read_schedule(longer)[1]
    start = tmp_path / "run" / "03-again" / "start"
    start.mkdir(parents=True)
    shutil.copy(finished / START / MANIFEST, start)
    member = {"name": "large", "iteration": 12, "parameters": parameter_count(large.config)}
    edit(start / MANIFEST, source__family=[member])
    _, steps = prepared(longer, tmp_path / "run")
    assert [step.done() for step in steps] == [*[True] * 6, False]
    edit(start / MANIFEST, source__family=[{**member, "iteration": 11}])
    with pytest.raises(UsageError, match=r"03-again: grew .* 11, the schedule has 12"):
        prepared(longer, tmp_path / "run")


@pytest.mark.parametrize("without", [[], [START]])
@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("tokens", {"carried__tokens": 1}),
        ("name", {"stage": "other"}),
        ("data", {"carried__data": "0" * 32}),
        ("iteration", None),
    ],
)
def test_a_receipt_speaks_of_the_checkpoint_that_is_there(
    schedule: Path, copied: Path, without: list[str], key: str, change: dict[str, Any] | None
) -> None:
    for name in without:
        shutil.rmtree(copied / name)
    prepared(schedule, copied)
    if change is None:
        (copied / SMALL / "latest_checkpointed_iteration.txt").write_text("3")
    else:
        edit(copied / SMALL / "iter_0000006" / "flmgrow_training.json", **change)
    if key == "data" and without:  # what a stage has saved does not tell this of its ancestors
        prepared(schedule, copied)
        return
    outcome = flmgrow("run", schedule, "--out", copied)
    assert outcome.code == 2
    assert f"02-large: grew from a checkpoint whose {key} is " in outcome.err
    assert f", {copied / SMALL} has " in outcome.err


@pytest.mark.parametrize("stopped", range(len(ORDER)))
def test_only_what_is_left_is_done(
    schedule: Path, finished: Path, tmp_path: Path, stopped: int
) -> None:
    """A step that fails ends the run with its code; the next call takes it up again."""
    folder, steps = prepared(schedule, tmp_path / "run")
    ran: list[str] = []
    carry_out = stand_in(finished, folder, ran)

    def failing(words: tuple[str, ...]) -> int:
        return 4 if len(ran) == stopped else carry_out(words)

    told: list[str] = []
    assert run_steps(steps, failing, told.append) == 4
    assert ran == ORDER[:stopped]
    assert [line.split()[2] for line in told] == ORDER[: stopped + 1]
    ran.clear()
    assert run_steps(steps, stand_in(finished, folder, ran), told.append) == 0
    assert ran == ORDER[stopped:]


def test_a_command_that_makes_nothing_does_not_pass(schedule: Path, tmp_path: Path) -> None:
    _, steps = prepared(schedule, tmp_path / "run")
    with pytest.raises(StepNotDoneError, match="stage small: train ended, but is not done"):
        run_steps(steps, lambda _: 0, lambda _: None)


@pytest.mark.parametrize("until", ["small", "large"])
def test_until_a_stage(schedule: Path, finished: Path, tmp_path: Path, until: str) -> None:
    folder, _ = prepared(schedule, tmp_path / "run")
    ran: list[str] = []
    assert run_steps(steps_of(folder, until), stand_in(finished, folder, ran), lambda _: None) == 0
    assert ran == ORDER[: 1 if until == "small" else None]


@pytest.mark.parametrize("kind", ["another function", "a flipped byte"])
def test_the_gate_stops_the_run_and_stays_shut(
    schedule: Path, finished: Path, tmp_path: Path, kind: str
) -> None:
    """The real ``verify``, behind a growth that stacks layers, and behind damage."""
    folder, steps = prepared(schedule, tmp_path / "run")
    ran: list[str] = []
    carry_out = stand_in(finished, folder, ran)

    def gated(words: tuple[str, ...]) -> int:
        if words[0] == "train":
            return carry_out(words)
        if words[0] == "expand" and kind == "another function":
            return flmgrow(*words[:3], "--num-layers", 4, "--method", "depth=stack").code
        return flmgrow(*words).code

    assert run_steps(steps[:2], gated, lambda _: None) == 0
    if kind == "a flipped byte":
        weights = folder.path / "02-large" / "start" / "iter_0000006" / "__0_0.distcp"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    for _ in range(2):
        assert run_steps(steps, gated, lambda _: None) == 1
    assert ran == ["train"]
    assert not (folder.path / "02-large" / "checkpoints").exists()


CHANGES: dict[str, tuple[str, Any]] = {
    "learning_rate.peak": ("learning_rate", {"peak": 1.0}),
    "training.batch": ("training", {"steps": STEPS, "batch": 16}),
    "model.ffn_hidden_size": ("model", {"ffn_hidden_size": 64}),
}


@pytest.mark.parametrize("gone", [[], [SMALL], [SMALL, LARGE]])
@pytest.mark.parametrize("key", CHANGES)
def test_a_stage_that_has_begun_stays_what_it_is(
    schedule: Path, copied: Path, tmp_path: Path, key: str, gone: list[str]
) -> None:
    for name in gone:
        shutil.rmtree(copied / name)
    section, value = CHANGES[key]
    content = yaml.safe_load(schedule.read_text())
    content["stages"][0] = content["stages"][0] | {section: value}
    changed = write_schedule(tmp_path, content)
    before = (copied / "01-small" / "stage.yaml").read_bytes()
    outcome = flmgrow("run", changed, "--out", copied)
    assert outcome.code == 2
    assert f"01-small/stage.yaml: {key} is " in outcome.err
    ways = (
        "this stage has begun: give another" if key.startswith("model.") else "has ended: leave it"
    )
    assert ways in outcome.err
    assert (copied / "01-small" / "stage.yaml").read_bytes() == before


def test_a_stage_may_be_watched_otherwise(schedule: Path, copied: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(schedule.read_text())
    content |= {"log": {"every": 3}, "guard": {"spike": 4.0}, "checkpoint": {"every": 2}}
    accepted("run", write_schedule(tmp_path, content), "--out", copied)
    stage = yaml.safe_load((copied / "01-small" / "stage.yaml").read_text())
    assert (stage["log"]["every"], stage["guard"]["spike"]) == (3, 4.0)


def test_only_the_last_stage_can_be_made_longer(
    schedule: Path, copied: Path, tmp_path: Path
) -> None:
    for stage, allowed in ((0, False), (1, True)):
        content = yaml.safe_load(schedule.read_text())
        content["stages"][stage]["training"]["steps"] += 1
        words = ("run", write_schedule(tmp_path, content), "--out", copied, "--print-commands")
        assert flmgrow(*words).code == (0 if allowed else 2)


def test_no_stage_ends_before_where_it_is(schedule: Path, copied: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(schedule.read_text())
    content["stages"][1]["training"]["steps"] -= 1
    shorter = write_schedule(tmp_path, content)
    outcome = flmgrow("run", shorter, "--out", copied)
    assert outcome.code == 2
    assert (
        f"error: {shorter}: stage large: training.steps: end it at iteration 11, it has been "
        "trained to 12\nhint: give at least 6 steps"
    ) in outcome.err
    (copied / LARGE / "latest_checkpointed_iteration.txt").write_text("9")  # it is not there yet
    prepared(shorter, copied)


def test_commands_to_submit(schedule: Path, finished: Path, tmp_path: Path) -> None:
    done = accepted("run", schedule, "--out", finished, "--print-commands").out.splitlines()
    assert [line.startswith("# done: ") for line in done] == [True] * 4
    out = tmp_path / "run"
    words = ("run", schedule, "--out", out, "--print-commands", "--gpus-per-node", 1)
    lines = accepted(*words).out.splitlines()
    assert lines == [
        f"torchrun --standalone --nproc-per-node 1 -m flmgrow.trainer {out}/01-small/stage.yaml",
        f"flmgrow expand {out}/01-small/checkpoints {out}/02-large/start "
        f"--to {out}/02-large/growth.yaml --format torch_dist",
        f"flmgrow verify {out}/01-small/checkpoints {out}/02-large/start",
        "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint "
        f"$MASTER_ADDR:29500 -m flmgrow.trainer {out}/02-large/stage.yaml",
    ]
    assert (out / "02-large" / "growth.yaml").is_file()
    (last,) = accepted(*words, "--launcher", "srun").out.splitlines()[-1:]
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 python -m flmgrow.trainer" in last


def test_a_dry_run_writes_nothing(schedule: Path, tmp_path: Path) -> None:
    outcome = accepted("run", schedule, "--out", tmp_path / "run", "--dry-run")
    assert outcome.out.count("$ flmgrow ") == len(ORDER)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--until", "huge"), "--until huge: no such stage"),
        (("--launcher", "mpirun"), "--launcher mpirun: wanted torchrun or srun"),
        (("--gpus-per-node", "0"), "gpus-per-node"),
        (("--json",), "--json: shows a plan as data, wanted with --dry-run"),
    ],
)
def test_wrong_options_are_refused(
    schedule: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = flmgrow("run", schedule, "--out", tmp_path / "run", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_names_no_number_is_refused(schedule: Path, copied: Path) -> None:
    tracker = copied / "01-small" / "checkpoints" / "latest_checkpointed_iteration.txt"
    tracker.write_text("soon")
    outcome = flmgrow("run", schedule, "--out", copied)
    assert outcome.code == 3
    assert f"{tracker}: found 'soon', wanted a number" in outcome.err


def test_a_command_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert launch(("inspect", str(tmp_path / "missing"))) == flmgrow("inspect", tmp_path).code
