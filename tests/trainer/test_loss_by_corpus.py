"""The loss of each corpus' samples is that of these samples alone, in training and validation."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import flmgrow
from stage_runs import stage_data, train, write_stage
from tiny_tokenizers import make_jsonl

from flmgrow.trainer.metrics.records import ValidationRecord
from flmgrow.trainer.metrics.reporting import validation_lines

MODEL = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2}


def test_corpora_stand_beside_the_mean() -> None:
    record = ValidationRecord(50, 1, 1, 2.73089, "small", {"en": 2.40181, "code": 3.11036})
    assert list(validation_lines(record)) == [
        "small  step 50  validation loss 2.7309  en 2.4018  code 3.1104"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name, text in (("en", "the thing that grows "), ("code", "x[0] += y(1); ")):
        texts = make_jsonl(folder / f"{name}.jsonl", [text * 20] * 20)
        words = ["data", "prepare", str(texts), str(folder / name), "--tokenizer", "bytes"]
        assert flmgrow(*words).code == 0
    return folder


def _trained(path: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Return the records of a step that changes no weight, and of the validation after it."""
    content = stage_data(
        folder,
        model=MODEL,
        training={"steps": 1, "batch": 8, "micro_batch": 2},
        learning_rate={"peak": 1e-12},
    )
    del content["data"]["teacher"]
    for name, values in changes.items():
        content[name] = {**content.get(name, {}), **values}
    stage = write_stage(path, content)
    train(stage)
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_each_corpus_has_its_own(folder: Path, tmp_path: Path) -> None:
    corpora = [{"path": str(folder / "en"), "weight": 3}, {"path": str(folder / "code")}]
    both: dict[str, Any] = {
        "data": {"corpora": corpora, "validation_share": 0.2},
        "log": {"validation_every": 1, "validation_samples": 12, "by_corpus": True},
    }
    step, validation = _trained(tmp_path / "both", folder, **both)
    for record, whole, shares in (
        (step, step["loss"], (6 / 8, 2 / 8)),  # three samples in four are of the first
        (validation, validation["validation_loss"], (9 / 12, 3 / 12)),
    ):
        losses = record["by_corpus"]
        assert list(losses) == ["en", "code"]
        assert abs(losses["en"] - losses["code"]) > 1e-3  # else any share would give the mean
        mean = sum(n * loss for n, loss in zip(shares, losses.values(), strict=True))
        assert mean == pytest.approx(whole, rel=1e-12)
    load = {"checkpoint": {"load": str(tmp_path / "both" / "checkpoints")}}
    tensors = _trained(tmp_path / "tp2", folder, **both, **load, layout={"tp": 2})[1]
    assert tensors["by_corpus"] == pytest.approx(validation["by_corpus"], rel=1e-6)
    alone: dict[str, Any] = {
        "data": {**both["data"], "corpora": corpora[1:], "differs": True},
        "log": {**both["log"], "validation_samples": 3},
    }
    code = _trained(tmp_path / "alone", folder, **alone, **load)[1]
    assert code["by_corpus"] == {}
    assert code["validation_loss"] == pytest.approx(validation["by_corpus"]["code"], rel=1e-6)
