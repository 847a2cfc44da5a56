"""A stage whose batch grows: every count knows it, and a resume changes no bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow
from stage_runs import make_data, metrics, saved, write_schedule, write_stage
from trained_here import small, trained, trained_in

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.flops import training_flops
from flmgrow.trainer.checkpoint.rollbacks import Rollback, place_at
from flmgrow.trainer.guarding import RunGuard
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.stage.clock import StageProgress, trained_by
from flmgrow.trainer.stage.file import read_stage

BATCHES = [4, 4, 4, 4, 8, 8, 12, 12, 16, 16]
"""Of a ramp of 4 by 4 over 48 samples."""
LENGTH = 32


def ramped(data: Path, **changes: Any) -> dict[str, Any]:
    content = small(data, learning_rate={"peak": 1e-3, "warmup_share": 0.25}, **changes)
    del content["learning_rate"]["warmup_samples"]
    content["training"] = {
        "tokens": sum(BATCHES) * LENGTH,
        "batch": 16,
        "micro_batch": 2,
        "batch_ramp": [4, 4, 48],
    }
    content["checkpoint"] = {"every": 5}
    return content


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    trained_in(folder, ramped(data))
    return folder / "stage.yaml"


def test_a_stage_that_ends_in_its_ramp_says_so(data: Path, tmp_path: Path) -> None:
    """At its beginning, and before: in what a schedule of it would do."""
    content = ramped(data)
    content["training"]["tokens"] = sum(BATCHES[:5]) * LENGTH
    told = trained(write_stage(tmp_path, content))
    assert "note: the stage ends before its batch has grown to 16: at 8\n" in told
    del content["name"], content["checkpoint"]
    content["model"]["vocab_size"] = 257
    content["stages"] = [{"name": "only"}]
    rows = flmgrow("run", write_schedule(tmp_path, content), "--out", tmp_path / "r", "--dry-run")
    assert "in batches of 4 to 8 (of 16) sequences of 32\n" in rows.out


@pytest.mark.slow
def test_every_count_knows_the_batch(whole: Path) -> None:
    records, stage = metrics(whole), read_stage(whole)
    samples = [sum(BATCHES[: step + 1]) for step in range(len(BATCHES))]
    assert [record["samples"] for record in records] == samples
    assert [record["tokens"] for record in records] == [n * LENGTH for n in samples]
    with open_checkpoint(whole.parent / "checkpoints") as checkpoint:
        per_token = training_flops(checkpoint.config, LENGTH)
    assert [record["flops"] for record in records] == [n * LENGTH * per_token for n in samples]
    speeds = [record["tokens_per_second"] * record["seconds"] for record in records]
    assert speeds == pytest.approx([batch * LENGTH for batch in BATCHES])
    # The warm-up ends after a quarter of the samples, the floor is reached at the last.
    end = sum(BATCHES)
    assert stage.warmup_samples == end / 4
    rises = [1e-3 * 4 * (n - batch) / end for n, batch in zip(samples, BATCHES, strict=True)]
    found = [record["learning_rate"] for record in records]
    assert found[:5] == pytest.approx(rises[:5])
    assert max(found) <= 1e-3
    content = torch.load(
        whole.parent / "checkpoints" / "iter_0000010" / "common.pt", weights_only=False
    )
    assert content["args"].rampup_batch_size == [4, 4, 48]


@pytest.mark.slow
def test_a_resume_in_the_ramp_changes_no_bit(whole: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.parent, tmp_path / "again"))
    shutil.rmtree(folder / "checkpoints" / "iter_0000010")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    again = write_stage(folder, ramped(data))
    told = trained_in(folder, ramped(data))
    assert "goes on from step 5" in told
    assert saved(again, 10) == saved(whole, 10)
    losses = [[record["loss"] for record in metrics(stage)] for stage in (whole, again)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_another_ramp_from_a_checkpoint_on_is_told_and_counts_from_there(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    """Steps that were taken stay; the new ramp is asked by the samples that they read."""
    folder = Path(shutil.copytree(whole.parent, tmp_path / "other"))
    shutil.rmtree(folder / "checkpoints" / "iter_0000010")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    content = ramped(data)
    content["training"]["batch_ramp"] = [4, 12, 48]
    told = trained_in(folder, content)
    assert "note: training.batch_ramp is [4, 12, 48] after step 5, was [4, 4, 48]\n" in told
    batches = [*BATCHES[:5], *[4] * 6, 16, 16, 16]
    samples = [sum(batches[: step + 1]) for step in range(len(batches))]
    assert [record["samples"] for record in metrics(folder / "stage.yaml")] == samples


@pytest.mark.slow
def test_what_a_step_reads_is_shown(whole: Path) -> None:
    """After a step without a checkpoint, in the ramp."""
    outcome = accepted("data", "show", whole, "--step", 8, "--json")
    found = [json.loads(line)["number"] for line in outcome.out.splitlines()]
    before = sum(BATCHES[:7])
    assert found == list(range(before, before + BATCHES[7]))


def test_what_it_costs_is_counted(data: Path, tmp_path: Path) -> None:
    content = ramped(data)
    content["model"] = {**content["model"], "vocab_size": 257}
    content["training"] |= {"steps": 10}
    del content["training"]["tokens"]
    stage = write_stage(tmp_path, content)
    found = json.loads(accepted("cost", stage, "--json").out)
    (one,) = found["stages"]
    assert one["tokens"] == sum(BATCHES) * LENGTH


def test_a_run_that_went_back_goes_on_with_the_right_sample(data: Path, tmp_path: Path) -> None:
    """Samples passed over count as consumed, and the ramp by what was trained on."""
    stage = read_stage(write_stage(tmp_path, ramped(data)))
    trained = trained_by(stage, StageProgress(), 100)
    back = [Rollback(step=106, to=104, begin=16, end=40, why="")]
    assert place_at(back, 100, 0, trained, 103) == 12
    assert place_at(back, 100, 0, trained, 104) == 40
    assert place_at(back, 100, 0, trained, 107) == 40 + 8 + 8 + 12


@pytest.mark.slow
def test_it_goes_back_from_a_spike_in_the_ramp(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples 16 to 31 are passed over; batches are those that the stage would have had."""
    honest = RunGuard.check_step

    def check(guard: RunGuard, record: StepRecord, batch: int) -> None:
        spoilt = replace(record, loss=float("nan")) if record.samples == 32 else record
        honest(guard, spoilt, batch)

    monkeypatch.setattr(RunGuard, "check_step", check)
    content = ramped(data, guard={"action": "rollback", "window": 1})
    content["checkpoint"] = {"every": 2}
    told = trained_in(tmp_path, content)
    assert "goes back to the checkpoint of step 4, and passes over samples 16 to 31" in told
    records = metrics(tmp_path / "stage.yaml")
    samples = [sum(BATCHES[: step + 1]) + 16 * (step >= 4) for step in range(len(BATCHES))]
    assert [record["samples"] for record in records] == samples
    assert records[-1]["tokens"] == sum(BATCHES) * LENGTH
    outcome = accepted("data", "show", tmp_path / "stage.yaml", "--step", 8, "--json")
    found = [json.loads(line)["number"] for line in outcome.out.splitlines()]
    assert found == list(range(samples[6], samples[7]))
