"""A file of metrics says what happened, bit for bit, and a resumed run leaves no trace in it."""

import errno
import json
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_runs import RECORD, Stage, lines, make_records, same, write_records

from flmgrow.errors import BadDataError, OutputExistsError, StorageError, UsageError
from flmgrow.model.masks import Dimension
from flmgrow.trainer.metrics.event_files import TensorBoard
from flmgrow.trainer.metrics.log import MetricsLog, read_metrics
from flmgrow.trainer.metrics.records import Measured, StepRecord, ValidationRecord
from flmgrow.trainer.metrics.reporting import progress_line

NUMBERS = st.floats()
RECORDS: list[Measured] = make_records([Stage("a", 30, ramp=5)], every=10)[0]


@given(loss=NUMBERS, norm=NUMBERS, rate=NUMBERS, teacher=st.none() | NUMBERS)
def test_numbers_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory,
    loss: float,
    norm: float,
    rate: float,
    teacher: float | None,
) -> None:
    record = replace(RECORD, loss=loss, grad_norm=norm, learning_rate=rate, teacher_loss=teacher)
    path = tmp_path_factory.mktemp("bits") / "metrics.jsonl"
    (found,) = read_metrics(write_records(path, [record]))
    assert isinstance(found, StepRecord)
    assert same(found.loss, loss)
    assert same(found.grad_norm, norm)
    assert same(found.learning_rate, rate)
    assert (found.teacher_loss is None) == (teacher is None)
    assert teacher is None or same(found.teacher_loss or 0.0, teacher) or teacher == 0


def test_records_come_back_whole(tmp_path: Path) -> None:
    masked = replace(
        RECORD, masks={Dimension.WIDTH: 0.1, Dimension.FFN: 0.7}, flops=10**25 + 1, stage="große"
    )
    records: list[Measured] = [masked, ValidationRecord(1, 512, 10**25, 3.25, "große", {"en": 3.0})]
    path = write_records(tmp_path / "new" / "metrics.jsonl", records)
    assert read_metrics(path) == records
    assert [line["kind"] for line in lines(path)] == ["step", "validation"]
    assert "NaN" not in path.read_text(encoding="utf-8")


def test_what_json_has_no_number_for_is_a_word(tmp_path: Path) -> None:
    record = replace(RECORD, loss=math.nan, grad_norm=-math.inf)
    path = write_records(tmp_path / "metrics.jsonl", [record])
    (line,) = lines(path)
    assert (line["loss"], line["grad_norm"]) == ("NaN", "-Infinity")
    (found,) = read_metrics(path)
    assert isinstance(found, StepRecord)
    assert math.isnan(found.loss)
    assert found.grad_norm == -math.inf


@given(resumed=st.integers(0, 30), killed=st.integers(0, 30), cut=st.integers(0, 400))
def test_a_resumed_log_is_the_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, resumed: int, killed: int, cut: int
) -> None:
    place = tmp_path_factory.mktemp("resumed")
    whole = write_records(place / "whole.jsonl", RECORDS).read_bytes()
    path = write_records(place / "metrics.jsonl", [r for r in RECORDS if r.step <= killed])
    # A checkpoint is made after its step's records: the line that was cut is a later one.
    kept = sum(len(line) for line in whole.splitlines(True)[: _count(min(resumed, killed))])
    os.truncate(path, max(kept, path.stat().st_size - cut))
    with MetricsLog(path, "a", min(resumed, killed), resumed=True) as log:
        for record in RECORDS[_count(min(resumed, killed)) :]:
            log.write(record)
    assert path.read_bytes() == whole
    assert not path.with_name("metrics.jsonl.part").exists()


def _count(step: int) -> int:
    return sum(record.step <= step for record in RECORDS)


def test_a_run_that_begins_anew_has_a_new_log(tmp_path: Path) -> None:
    """A folder of checkpoints may be misspelt: what was told before is not lost."""
    path = write_records(tmp_path / "metrics.jsonl", RECORDS)
    before = path.read_bytes()
    with MetricsLog(path, "a", 0, resumed=False):
        assert path.read_bytes() == b""
    assert path.with_name("metrics.jsonl.old").read_bytes() == before


def test_stages_may_share_a_log(tmp_path: Path) -> None:
    path = write_records(tmp_path / "metrics.jsonl", RECORDS)
    before = path.read_bytes()
    for begin, resumed in ((29, False), (0, False), (12, True)):
        with pytest.raises(OutputExistsError, match=r"holds step .* of the stage 'a', 'b' begins"):
            MetricsLog(path, "b", begin, resumed=resumed)
    with MetricsLog(path, "b", 30, resumed=False) as log:
        log.write(replace(RECORD, step=31, stage="b"))
    assert path.read_bytes().startswith(before)
    with MetricsLog(path, "b", 30, resumed=True):
        assert path.read_bytes() == before


def test_lines_are_there_at_once_and_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(descriptor: int, data: memoryview, position: int) -> int:
        calls.append(bytes(data))
        return pwrite(descriptor, data, position)

    pwrite = os.pwrite
    log = MetricsLog(tmp_path / "metrics.jsonl", "stage", 0, resumed=False)
    monkeypatch.setattr(os, "pwrite", counted)
    log.write(RECORD)
    assert read_metrics(tmp_path / "metrics.jsonl") == [RECORD]
    log.write(replace(RECORD, step=2))
    log.close()
    assert [call.count(b"\n") for call in calls] == [1, 1]
    assert all(call.endswith(b"\n") for call in calls)


def test_a_full_disk_costs_no_line_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, position: int) -> int:
        if data.nbytes < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[: data.nbytes - 50], position)

    with MetricsLog(path, "stage", 0, resumed=False) as log:
        log.write(RECORD)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StorageError, match=r"metrics\.jsonl: writing at byte \d+ failed"):
                log.write(replace(RECORD, step=2))
        assert path.read_bytes().count(b"\n") == 1
        assert not path.read_bytes().endswith(b"\n")
        assert read_metrics(path) == [RECORD]
        log.write(replace(RECORD, step=3))
    assert [record.step for record in read_metrics(path)] == [1, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "json"),
        ("\0" * 40, "json"),
        ("[1]", "the whole: "),
        ('{"kind": "step", "step": 2}', "loss: is not given"),
        ('{"kind": "lunch", "step": 2}', "lunch"),
        ('{"step": 2}', "kind"),
        (json.dumps(RECORD.to_json() | {"loss": "low"}), "step.loss: "),
        (json.dumps(RECORD.to_json() | {"step": 1.5}), "step.step: "),
        (json.dumps(RECORD.to_json() | {"masks": {"taste": 0.5}}), "taste"),
    ],
)
def test_damaged_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = write_records(tmp_path / "metrics.jsonl", [RECORD])
    good = path.read_text(encoding="utf-8")
    path.write_text(good + line + "\n" + good, encoding="utf-8")
    resumed = partial(MetricsLog, path, "stage", 1, resumed=True)
    for attempt in (lambda: read_metrics(path), resumed):
        with pytest.raises(BadDataError) as caught:
            attempt()
        assert f"{path}:2: holds no record: " in caught.value.message
        assert message in caught.value.message
    assert path.read_text(encoding="utf-8").endswith(good)
    path.write_text(good + line, encoding="utf-8")  # cut: no end of line
    assert read_metrics(path) == [RECORD]


def test_keys_of_a_later_version_pass(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(RECORD.to_json() | {"mood": "good"}) + "\n", encoding="utf-8")
    assert read_metrics(path) == [RECORD]


def test_progress_lines_are_aligned() -> None:
    small = replace(RECORD, stage="16B", utilisation=0.052)
    large = replace(
        small,
        step=30_000,
        loss=12.25,
        grad_norm=1.2e12,
        tokens_per_second=999_999.0,
        model_tflops=187.2,
        utilisation=0.5,
    )
    first, second = progress_line(small, 30_000, 15_000), progress_line(large, 30_000, 0)
    assert first == (
        "16B       1/30,000  loss  5.5000  grad   0.812  lr 3.00e-04  1.02k tok/s"
        "     0.41 TFLOP/s  5.2%  ETA   4:10:00"
    )
    assert second == (
        "16B  30,000/30,000  loss 12.2500  grad 1.2e+12  lr 3.00e-04  1.00M tok/s"
        "      187 TFLOP/s 50.0%  ETA   0:00:00"
    )
    assert len(first) == len(second)


def test_progress_lines_tell_what_there_is() -> None:
    plain = progress_line(RECORD, 10, 4.5)
    assert "%" not in plain
    assert "width" not in plain
    masked = replace(RECORD, masks={Dimension.WIDTH: 0.25, Dimension.DEPTH: 0.5})
    line = progress_line(masked, 10, 9e5)
    assert line.endswith("ETA 10d 10:00  width 0.250  depth 0.500")
    assert "ETA         ?" in progress_line(RECORD, 10, math.inf)


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path) as board:
        for record in RECORDS[: _count(20)]:
            board.write(record)
    changed = [replace(r, loss=1.0) for r in RECORDS[_count(15) :] if isinstance(r, StepRecord)]
    with TensorBoard(tmp_path) as board:
        for record in changed:
            board.write(record)
    steps = [record for record in RECORDS if isinstance(record, StepRecord)]
    wanted = [
        (record.step, record.tokens, record.loss if record.step <= 15 else 1.0) for record in steps
    ]
    for axis, place in (("steps", 0), ("tokens", 1)):
        found = _scalars(tmp_path, axis, "loss")
        assert [at for at, _ in found] == [row[place] for row in wanted]
        assert [value for _, value in found] == pytest.approx([row[2] for row in wanted])
    assert [step for step, _ in _scalars(tmp_path, "steps", "masks/width")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in _scalars(tmp_path, "steps", "validation_loss")] == [10]
    assert [at for at, _ in _scalars(tmp_path, "tokens", "validation_loss")] == [10_000_000]


def _scalars(folder: Path, axis: str, name: str) -> list[tuple[float, ...]]:
    accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder / axis), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(f"{axis}/{name}")]


def test_tensorboard_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="tensorboard is not installed") as caught:
        TensorBoard(tmp_path)
    assert "flmgrow[tensorboard]" in caught.value.hint
