"""A stage that is stopped and started again takes the very same steps, and one that grew the same
first one.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_runs import (
    LARGE,
    MODEL,
    STEPS,
    command,
    environment,
    make_data,
    metrics,
    saved,
    stage_data,
    train,
    write_stage,
)

from flmgrow.cli.app import run
from flmgrow.formats.history.manifest import family, masks_of, training_of
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.model.mup import KIND
from flmgrow.storage.lock import take_lock

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2 sp": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2},
    "uneven": {"pp": 2, "pipeline_layers": [3, 1]},
    "vpp2": {"pp": 2, "vpp": 2},
    "dp2": {"dp": 2},
    "dp2 distributed": {"dp": 2, "distributed_optimizer": True},
    "tp2 pp2": {"tp": 2, "pp": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that ran undisturbed."""
    stage = write_stage(tmp_path_factory.mktemp("whole"), stage_data(data))
    train(stage)
    return stage


def losses(stage: Path) -> list[float]:
    return [record["loss"] for record in metrics(stage)]


def test_it_learns(whole: Path) -> None:
    found = losses(whole)
    assert len(found) == STEPS
    assert found[-1] < found[0] - 0.3
    last = metrics(whole)[-1]
    assert last["tokens"] == STEPS * 8 * 32
    assert last["samples"] == STEPS * 8
    assert last["teacher_loss"] > 0


@pytest.mark.slow
def test_resuming_is_bit_equal(data: Path, whole: Path, tmp_path: Path) -> None:
    half = write_stage(tmp_path / "parts", stage_data(data, training={"steps": 3}))
    train(half)
    stage = write_stage(tmp_path / "parts", stage_data(data))
    train(stage)
    assert losses(stage) == losses(whole)
    assert saved(stage, STEPS) == saved(whole, STEPS)


@pytest.mark.slow
def test_another_seed_is_told_apart(data: Path, whole: Path, tmp_path: Path) -> None:
    stage = write_stage(tmp_path, stage_data(data, training={"seed": 5}))
    train(stage)
    assert losses(stage) != losses(whole)
    assert saved(stage, STEPS).keys() == saved(whole, STEPS).keys()
    assert saved(stage, STEPS) != saved(whole, STEPS)


@pytest.mark.slow
def test_a_stage_that_is_done_stays_as_it_is(whole: Path) -> None:
    before = saved(whole, STEPS), losses(whole)
    train(whole)
    assert (saved(whole, STEPS), losses(whole)) == before


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on(data: Path, tmp_path: Path) -> None:
    content = stage_data(data, training={"steps": 400}, learning_rate={"peak": 1e-3})
    stage = write_stage(tmp_path, {**content, "checkpoint": {}})
    process = subprocess.Popen(command(stage), env=environment(), stderr=subprocess.DEVNULL)
    log = tmp_path / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    stopped = metrics(stage)[-1]["step"]
    assert stopped < 400
    with open_checkpoint(tmp_path / "checkpoints") as checkpoint:
        assert checkpoint.iteration == stopped
    more = write_stage(
        tmp_path, {**content, "training": {**content["training"], "steps": stopped + 2}}
    )
    train(more)
    assert [record["step"] for record in metrics(more)] == list(range(1, stopped + 3))


@pytest.mark.slow
def test_only_one_run_saves_in_a_folder(data: Path, whole: Path, tmp_path: Path) -> None:
    """All ranks of the second one hear of it, and the first goes on."""
    content = stage_data(data, layout={"tp": 2}, checkpoint={"folder": str(tmp_path / "saved")})
    stage = write_stage(tmp_path, content)
    (tmp_path / "saved").mkdir()
    descriptor = take_lock(tmp_path / "saved" / ".lock")
    told = train(stage, expect=5)
    assert told.count("error: ") == 1
    assert f"{tmp_path / 'saved'}: another run saves there (pid {os.getpid()} on " in told
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [".lock"]
    os.close(descriptor)
    train(stage)
    assert not (tmp_path / "saved" / ".lock").exists()


def grown(whole: Path, folder: Path, data: Path, *options: str, **changes: Any) -> Path:
    """Grow what ``whole`` trained, by masks if not told otherwise, and return the next stage."""
    folder.mkdir(exist_ok=True)
    words = ["expand", str(whole.parent / "checkpoints"), str(folder / "start"), *LARGE]
    assert run([*words, *options]) == 0
    assert run(["verify", str(whole.parent / "checkpoints"), str(folder / "start")]) == 0
    model = {**MODEL, "num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 176}
    model |= {"num_attention_heads": 6, "multipliers": {"mup_base_width": 16}}
    content = stage_data(data, name="large", model=model, checkpoint={"load": "start"}, **changes)
    return write_stage(folder, content)


def next_loss(whole: Path, folder: Path, data: Path) -> float:
    """Return the loss that the small model would have had on its next batch."""
    content = stage_data(data, training={"steps": STEPS + 1})
    content["checkpoint"] = {"load": str(whole.parent / "checkpoints"), "every": 1000}
    stage = write_stage(
        folder, {**content, "name": "next", "training": {**content["training"], "steps": 1}}
    )
    train(stage)
    return losses(stage)[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tp": 2}], ids=["tp2"])
def test_growth_does_not_change_the_loss(
    data: Path, whole: Path, tmp_path: Path, layout: dict[str, int]
) -> None:
    stage = grown(whole, tmp_path, data, "--ramp-steps", "4", "--tp", "2", layout=layout)
    train(stage)
    found = metrics(stage)
    expected = next_loss(whole, tmp_path / "next", data)
    assert found[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert found[0]["step"] == STEPS + 1
    assert found[0]["samples"] == (STEPS + 1) * 8  # no sample is repeated, none is skipped
    assert found[0]["tokens"] == (STEPS + 1) * 8 * 32
    assert [record["masks"].get("ffn") for record in found] == [0, 0.25, 0.5, 0.75, None, None]
    with open_checkpoint(tmp_path / "checkpoints") as checkpoint:
        assert masks_of(checkpoint) == {}
        names = [member.name for member in family(checkpoint)]
        assert names == ["small", "start", "large"]
        training = training_of(checkpoint)
        assert training is not None
        assert training.consumed_samples == 2 * STEPS * 8
        assert training.base_output == 2.0
    assert settings_of_kinds(tmp_path / "checkpoints") == settings_of_kinds(tmp_path / "start")


def settings_of_kinds(folder: Path) -> dict[object, tuple[object, ...]]:
    """Return what muP gives each kind of parameter, apart from rates that move with the step."""
    with open_checkpoint(folder) as checkpoint:
        optimizer = with_optimizer(checkpoint).optimizer
        assert optimizer is not None
        return {
            (group[KIND], group["wd_mult"]): (group["max_lr"], group["eps"])
            for group in optimizer.groups
        }


@pytest.mark.slow
def test_masks_go_on_where_they_were(data: Path, whole: Path, tmp_path: Path) -> None:
    options = ("--ramp-steps", "10")
    one = grown(whole, tmp_path / "one", data, *options, masks={"in_turn": True})
    train(one)
    two = grown(whole, tmp_path / "two", data, *options, masks={"in_turn": True})
    text = two.read_text()
    two.write_text(
        yaml.safe_dump(
            {**yaml.safe_load(text), "training": {"steps": 3, "batch": 8, "micro_batch": 2}}
        )
    )
    train(two)
    with open_checkpoint(tmp_path / "two" / "checkpoints") as checkpoint:
        assert {str(name): mask.value for name, mask in masks_of(checkpoint).items()} == {
            "depth": 0.3, "ffn": 0.0, "heads": 0.0, "width": 0.0,
        }  # fmt: skip
    shutil.copytree(tmp_path / "two", tmp_path / "steeper")
    two.write_text(text)
    train(two)
    steeper = write_stage(
        tmp_path / "steeper", {**yaml.safe_load(text), "masks": {"in_turn": True, "ramp_steps": 5}}
    )
    train(steeper)
    found = [record["masks"]["depth"] for record in metrics(steeper)[3:]]
    assert found == pytest.approx([0.3, 0.5, 0.7])
    assert losses(one) == losses(two)
    assert saved(one, 2 * STEPS) == saved(two, 2 * STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_going_on_from_further_back_keeps_what_it_saves(
    data: Path, whole: Path, tmp_path: Path, keep: int
) -> None:
    """Later iterations are of the run that was given up, and neither counted nor removed."""
    shutil.copytree(whole.parent / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    stage = write_stage(
        tmp_path, stage_data(data, training={"steps": 4}, checkpoint={"every": 1, "keep": keep})
    )
    train(stage)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("iter_*"))
    kept = ["iter_0000003", "iter_0000004"][-keep:]
    assert names == [*kept, "iter_0000006"]
    with open_checkpoint(tmp_path / "checkpoints") as checkpoint:
        assert checkpoint.iteration == 4


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    wild = {"peak": 1e30, "warmup_samples": 0}
    stage = write_stage(tmp_path, stage_data(data, learning_rate=wild, checkpoint={"every": 1}))
    told = train(stage, expect=7)
    assert "the last good checkpoint in" in told
    assert "Traceback" not in told


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "other model": ({"model": {**MODEL, "num_layers": 3}}, 2, "layers is 2, the stage file says 3"),
    "other multiplier": (
        {"model": {**MODEL, "multipliers": {**MODEL["multipliers"], "output": 1.0}}},
        2,
        "multipliers.output is 2.0, the stage file says 1.0",
    ),
    "other data": ({"data": {"seed": 7}}, 2, "consumed 48 samples of other data"),
    "other stage": ({"name": "large"}, 2, "is of the stage 'small'"),
    "too many ranks": ({"layout": {"tp": 3}}, 2, "TP3 cannot split"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_the_checkpoint_is_refused(
    data: Path, whole: Path, tmp_path: Path, case: str
) -> None:
    changes, code, message = REFUSED[case]
    if case != "other stage":
        checkpoint: dict[str, Any] = {"load": str(whole.parent / "checkpoints")}
    else:
        checkpoint = {"folder": str(whole.parent / "checkpoints")}
    stage = write_stage(tmp_path, stage_data(data, **changes, checkpoint=checkpoint))
    told = train(stage, expect=code)
    assert message in told
    assert told.count("error: ") == 1


USUAL = [("float32", "torch_dist"), ("bfloat16", "megatron")]
OTHER = [("float32", "megatron"), ("bfloat16", "torch_dist")]
# Every layout once, in either precision and format; the other pairs are exhaustive.
PAIRS = [*USUAL, *OTHER]
RESUMED = [
    pytest.param(name, *kind, marks=() if place % len(PAIRS) == number else pytest.mark.exhaustive)
    for place, name in enumerate(LAYOUTS)
    for number, kind in enumerate(PAIRS)
]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "file_format"), RESUMED)
def test_resuming_is_bit_equal_in_every_layout(
    data: Path, tmp_path: Path, name: str, precision: str, file_format: str
) -> None:
    """The run is taken up from what it had saved half-way, as after a kill."""
    content = stage_data(
        data,
        model={**MODEL, "num_layers": 4},
        layout=LAYOUTS[name],
        training={"steps": 4, "precision": precision},
        checkpoint={"every": 2, "keep": 2, "format": file_format},
    )
    whole = write_stage(tmp_path / "whole", content)
    train(whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    parts = tmp_path / "parts" / "stage.yaml"
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "iter_0000004")
    (tmp_path / "parts" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    train(parts)
    assert losses(parts) == losses(whole)
    assert saved(parts, 4) == saved(whole, 4)


@pytest.fixture(scope="module")
def grown_on_one_rank(data: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that began with a grown checkpoint, on one rank."""
    stage = grown(whole, tmp_path_factory.mktemp("grown"), data, "--ramp-steps", "4")
    train(stage)
    return stage


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_grown_checkpoint_goes_on_alike_in_any_layout(
    grown_on_one_rank: Path, tmp_path: Path, name: str
) -> None:
    """Written for one rank, read by others; masks at 0, 0.25, 0.5, 0.75 and open."""
    content = yaml.safe_load(grown_on_one_rank.read_text())
    start = str(grown_on_one_rank.parent / "start")
    content |= {"layout": LAYOUTS[name], "checkpoint": {"load": start}}
    stage = write_stage(tmp_path, content)
    train(stage)
    alone, found = metrics(grown_on_one_rank), metrics(stage)
    assert len(found) == len(alone)
    for one, other in zip(alone, found, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-6), one["step"]
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-5), one["step"]
