"""Sets that a stage is validated on, by name: what they hold, which one counts, bits per byte."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from commands import accepted, flmgrow
from stage_runs import metrics, saved, stage_data, train, write_stage
from tiny_tokenizers import make_jsonl
from trained_here import trained

from flmgrow.stages.later_data import data_after
from flmgrow.trainer.data.samples import Sample
from flmgrow.trainer.data.tokenizers import open_tokenizer
from flmgrow.trainer.data.validation import TextSize, text_size
from flmgrow.trainer.metrics.records import SetLoss, ValidationRecord
from flmgrow.trainer.metrics.reporting import validation_lines
from flmgrow.trainer.stage.data import (
    CorpusSection,
    DataSection,
    ValidationCorpusSection,
    ValidationSetSection,
)

MODEL = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
TEXTS = {"en": "the thing that grows ", "code": "x[0] += y(1); ", "zh": "汉字在生长。"}


class Rows:
    """Samples of four labels, of which the last does not count."""

    identity: ClassVar[dict[str, Any]] = {"name": "rows"}
    earlier: ClassVar[dict[str, Any]] = identity

    def __getitem__(self, index: int) -> Sample:
        labels = np.array([97, 256, 98 + index, 99])
        counts = np.array([1, 1, 1, 0], np.float32)
        return Sample(labels, labels, counts, np.arange(4))


def test_bits_per_byte_are_all_bits_over_all_bytes() -> None:
    """A token that ends a document costs bits, and has no bytes; others may not count at all."""
    lengths = open_tokenizer("bytes").byte_lengths
    assert lengths is not None
    size = text_size(Rows(), 5, lengths)
    assert size == TextSize(tokens=15, bytes=10)
    assert size.bits_per_byte(math.log(2)) == pytest.approx(1.5)
    assert TextSize(3, 0).bits_per_byte(1.0) is None


def test_each_set_has_a_line() -> None:
    sets = {"wiki": SetLoss(2.5, 1.25, {"en": 2.0, "de": 3.0}), "held-out": SetLoss(3.0)}
    record = ValidationRecord(50, 1, 1, 2.5, "small", sets["wiki"].by_corpus, 1.25, sets)
    assert list(validation_lines(record)) == [
        "small  step 50  validation loss 2.5000 on wiki  1.2500 bits/byte  en 2.0000  de 3.0000",
        "small  step 50  validation loss 3.0000 on held-out",
    ]
    alone = ValidationRecord(50, 1, 1, 2.5, "small", {}, 1.25)
    assert list(validation_lines(alone)) == [
        "small  step 50  validation loss 2.5000  1.2500 bits/byte"
    ]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"data": [("a", 1.0), ("a", 1.0)]}, "the name a stands twice"),
    "what is held out": ({"data": [("held-out", 1.0)]}, "is what validation_share holds out"),
    "no share": ({"data": [("a", 0.0)]}, "share"),
    "more than all": ({"data": [("a", 1.5)]}, "share"),
    "an unknown main one": (
        {"data": [("a", 1.0)], "log": {"validation_set": "b"}},
        "log.validation_set: b is no set of this stage, which has held-out, a",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    sets = [{"name": name, "corpora": [{"path": "x", "share": share}]}
            for name, share in changes["data"]]  # fmt: skip
    data = {"validation_sets": sets}
    log = changes.get("log", {})
    path = write_stage(tmp_path, stage_data(tmp_path, data=data, log=log))
    outcome = flmgrow("train", path)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name, text in TEXTS.items():
        texts = make_jsonl(folder / f"{name}.jsonl", [text * 20] * 20)
        accepted("data", "prepare", texts, folder / name, "--tokenizer", "bytes")
    return folder


def _stage(path: Path, folder: Path, **changes: Any) -> Path:
    sets: list[dict[str, Any]] = [
        {"name": "same", "corpora": [{"path": str(folder / "en"), "share": 0.2}]},
        {"name": "all", "corpora": [{"path": str(folder / "en")}], "samples": 20},
        {"name": "other", "corpora": [
            {"path": str(folder / "code"), "weight": 3}, {"path": str(folder / "zh")},
        ]},
    ]  # fmt: skip
    content = stage_data(
        folder,
        model=MODEL,
        data={
            "corpora": [{"path": str(folder / "en")}],
            "validation_share": 0.2,
            "validation_sets": sets,
        },
        training={"steps": 4, "batch": 8, "micro_batch": 2},
        learning_rate={"peak": 1e-2, "style": "constant"},
        checkpoint={"every": 2},
        log={"validation_every": 2, "validation_first": True, "validation_samples": 12},
    )
    del content["data"]["teacher"]
    for name, values in changes.items():
        content[name] = {**content.get(name, {}), **values}
    return write_stage(path, content)


def _validations(stage: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (stage.parent / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"]


@pytest.mark.slow
def test_sets_are_told_by_name_and_a_resumed_run_tells_the_same(
    folder: Path, tmp_path: Path
) -> None:
    whole = _stage(tmp_path / "whole", folder)
    told = trained(whole)
    note = "note: validation set all: 16 of its 20 documents of en are trained on, too"
    assert note in told.splitlines()
    assert "validation set same" not in told  # these are held out
    assert "step 0  validation loss" in told  # before the first step
    first, middle, last = _validations(whole)
    assert [record["step"] for record in (first, middle, last)] == [0, 2, 4]
    for record in (first, middle, last):
        sets = record["sets"]
        assert list(sets) == ["held-out", "same", "all", "other"]
        assert record["validation_loss"] == sets["held-out"]["loss"]
        assert record["bits_per_byte"] == sets["held-out"]["bits_per_byte"]
        assert sets["same"] == sets["held-out"]  # the very same samples
        assert list(sets["other"]["by_corpus"]) == ["code", "zh"]
    assert abs(last["sets"]["other"]["loss"] - last["validation_loss"]) > 0.05
    assert last["validation_loss"] < middle["validation_loss"] < first["validation_loss"]
    # Fewer bits per byte than per token: what ends documents costs bits, and is no text.
    per_token = last["validation_loss"] / math.log(2)
    assert per_token < last["bits_per_byte"] < 1.01 * per_token

    resumed = tmp_path / "resumed" / "stage.yaml"
    shutil.copytree(whole.parent, resumed.parent)
    place = resumed.parent / "checkpoints"
    shutil.rmtree(place / "iter_0000004")
    (place / "latest_checkpointed_iteration.txt").write_text("2")
    (resumed.parent / "metrics.jsonl").write_text(
        "".join((whole.parent / "metrics.jsonl").read_text().splitlines(keepends=True)[:4])
    )
    trained(resumed)
    assert _validations(resumed) == [first, middle, last]
    assert saved(resumed, 4) == saved(whole, 4)
    assert [r["loss"] for r in metrics(resumed)] == [r["loss"] for r in metrics(whole)]


@pytest.mark.slow
def test_the_main_set_may_be_a_named_one(folder: Path, tmp_path: Path) -> None:
    """Then it comes first. Layouts tell the same of it."""
    step: dict[str, Any] = {
        "training": {"steps": 1, "batch": 8, "micro_batch": 2},
        "learning_rate": {"peak": 1e-12},
        "log": {"validation_every": 1, "validation_first": False, "validation_set": "other"},
    }
    plain = _stage(tmp_path / "plain", folder, **step)
    trained(plain)
    (record,) = _validations(plain)
    assert list(record["sets"]) == ["other", "held-out", "same", "all"]
    assert record["validation_loss"] == record["sets"]["other"]["loss"]
    assert record["by_corpus"] == record["sets"]["other"]["by_corpus"]
    load = {"load": "../plain/checkpoints", "begin": "anew"}
    tensors = _stage(tmp_path / "tensors", folder, **step, layout={"tp": 2}, checkpoint=load)
    train(tensors)
    (other,) = _validations(tensors)
    assert other["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-6)


@pytest.mark.slow
def test_a_growth_that_changes_no_function_is_seen_in_no_loss(folder: Path, tmp_path: Path) -> None:
    """The last validation of a stage, and the first of the stage that has grown out of it."""
    small = _stage(tmp_path / "small", folder)
    trained(small)
    grown = tmp_path / "grown"
    wanted = ("--hidden-size", 32, "--num-attention-heads", 4, "--ffn-hidden-size", 128)
    accepted("expand", small.parent / "checkpoints", grown, *wanted, "--num-layers", 3)
    large = _stage(
        tmp_path / "large",
        folder,
        model={**MODEL, "num_layers": 3, "hidden_size": 32, "num_attention_heads": 4},
        checkpoint={"load": str(grown)},
    )
    trained(large)
    before, begin, later = _validations(small)[-1], *_validations(large)[:2]
    assert (before["step"], begin["step"], later["step"]) == (4, 4, 6)
    assert begin["tokens"] == before["tokens"]
    for name, found in begin["sets"].items():
        was = before["sets"][name]
        # float32: the grown model sums over more terms, in another order
        assert found["loss"] == pytest.approx(was["loss"], abs=2e-6)
        assert found["bits_per_byte"] == pytest.approx(was["bits_per_byte"], abs=4e-6)
        assert abs(later["sets"][name]["loss"] - was["loss"]) > 1e-3  # a step is seen


def test_other_sets_are_no_other_data() -> None:
    """A later stage of a schedule that names others goes on with the same samples."""
    before = DataSection(sequence_length=32, corpora=[CorpusSection(path=Path("x"))])
    sets = [ValidationSetSection(name="a", corpora=[ValidationCorpusSection(path=Path("y"))])]
    assert not data_after(before, before.model_copy(update={"validation_sets": sets})).differs
    assert data_after(before, before.model_copy(update={"seed": 1})).differs
