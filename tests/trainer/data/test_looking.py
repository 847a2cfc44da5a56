"""What is shown of a corpus is what lies in it, and what is trained on."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import accepted, refused
from tiny_tokenizers import make_jsonl

TEXTS = [f"{i}: " + "the thing " * (i * i % 7) for i in range(40)]
LENGTH = 16


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, and a stage that reads both."""
    folder = tmp_path_factory.mktemp("looking")
    for name, texts in (("en", TEXTS), ("more", [text.upper() for text in TEXTS])):
        source = make_jsonl(folder / f"{name}.jsonl", texts)
        accepted("data", "prepare", source, folder / name, "--tokenizer", "bytes", "--workers", 1)
    stage = {
        "name": "small",
        "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
        "data": {
            "sequence_length": LENGTH,
            "corpora": [{"path": "en", "weight": 3}, {"path": "more"}],
        },
        "training": {"steps": 9, "batch": 8, "micro_batch": 8},
        "learning_rate": {"peak": 1e-3},
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    return folder


def told(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(accepted("data", *words, "--json").out)
    return found


def test_a_document_is_shown_as_it_was_prepared(corpora: Path) -> None:
    for number in (0, 7, 39):
        found = told("show", corpora / "en", "--document", number)
        assert found["text"].rstrip("\0") == TEXTS[number]
        assert found["documents"] == [{"document": number, "begin": 0, "end": found["tokens"]}]
    out = accepted("data", "show", corpora / "en" / "data.bin", "--document", 1).out
    assert out == f"--- en; document 1 [0:14]; 14 tokens\n{TEXTS[1]}\n\n"


def test_counts_are_those_of_the_texts(corpora: Path) -> None:
    lengths = [len(text) + 1 for text in TEXTS]
    found = told("stats", corpora / "en", "--sequence-length", LENGTH)
    assert (found["documents"], found["tokens"]) == (40, sum(lengths))
    assert (found["shortest"], found["longest"]) == (min(lengths), max(lengths))
    assert found["median"] == float(np.median(lengths))
    assert found["longer_than_a_sample"] == sum(length > LENGTH for length in lengths)
    assert found["samples_per_epoch"] == (sum(lengths) - 1) // LENGTH


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--document", 40), "en: document 40, wanted 0 to 39"),
        ((), "say one of --document, --sample and --step"),
        (("--document", 1, "--sample", 2), "say one of --document, --sample and --step"),
        (("--sample", 1), "--sample: wanted --sequence-length too"),
    ],
)
def test_what_is_not_there_is_refused(
    words: tuple[object, ...], message: str, corpora: Path, tmp_path: Path
) -> None:
    refused(2, re.escape(message), "data", "show", corpora / "en", *words, place=tmp_path)


def shown(*words: object) -> list[dict[str, Any]]:
    """What a command shows, run where megatron-core may be imported."""
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow", "data", "show", *map(str, words), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def spanned(corpora: Path, found: dict[str, Any]) -> str:
    """The text at the places that are named, out of what was prepared."""
    texts = TEXTS if found["corpus"] == "en" else [text.upper() for text in TEXTS]
    ends = [f"{text}\0" for text in texts]
    spans = found["documents"]
    return "".join(ends[s["document"]][s["begin"] : s["end"]] for s in spans).replace("\0", "")


@pytest.mark.slow
def test_samples_are_where_they_are_said_to_be(corpora: Path) -> None:
    """Over an epoch's end; texts are as many bytes as characters here."""
    stats = told("stats", corpora / "en", "--sequence-length", LENGTH)
    per_epoch = stats["samples_per_epoch"]
    for number in (0, 3, per_epoch, per_epoch + 2):
        (found,) = shown(corpora / "en", "--sample", number, "--sequence-length", LENGTH)
        assert found["sample"] == number
        assert sum(s["end"] - s["begin"] for s in found["documents"]) == LENGTH
        assert found["text"] == spanned(corpora, found)


@pytest.mark.slow
def test_a_step_reads_the_samples_that_a_stage_trains_on(corpora: Path) -> None:
    """The same before it was trained and after, counted from its checkpoints; every sample once."""
    before = {step: shown(corpora / "stage.yaml", "--step", step) for step in (1, 2, 8)}
    numbers = [each["number"] for step in (1, 2) for each in before[step]]
    assert numbers == list(range(16))
    alone = shown(corpora / "en", "--sample", 0, "--sequence-length", LENGTH)
    first = next(each for each in before[1] if each["corpus"] == "en")
    assert {**alone[0], "number": first["number"]} == first
    assert [each["corpus"] for each in before[1]].count("en") == 6
    for each in (*before[1], *before[8]):
        assert each["text"] == spanned(corpora, each)
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow", "train", str(corpora / "stage.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {step: shown(corpora / "stage.yaml", "--step", step) for step in (1, 2, 8)} == before
    later = shown(corpora / "stage.yaml", "--step", 10)
    assert [each["number"] for each in later] == list(range(72, 80))
