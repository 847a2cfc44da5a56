"""Bits per byte of any text: what tiny and early models can be told apart by.

The log-likelihood of a text says how many bits a model needs to store it. Divided by the text's
bytes it can be compared between models with other tokenizers, and needs no questions. It is a task
of lm-evaluation-harness like any other, made of a file: a ``.txt`` is one document, of a ``.jsonl``
each line is, with its text under ``text``; both may be compressed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flmgrow.errors import BadDataError
from flmgrow.evaluation.request import Asked
from flmgrow.trainer.data.documents import SourceReading, read_documents, text_of
from flmgrow.trainer.data.sources import find_sources

METRIC = "bits_per_byte"
KEY = "text"
"""The key of a JSON line that has its text."""


def task_config(asked: Asked) -> dict[str, Any]:
    """Return the task of a text as lm-evaluation-harness takes it."""
    return {
        "task": asked.task,
        "custom_dataset": documents,
        "dataset_kwargs": {"file": str(asked.file)},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "num_fewshot": 0,
        "doc_to_text": "",
        "doc_to_target": KEY,
        "metric_list": [{"metric": METRIC, "aggregation": METRIC, "higher_is_better": False}],
        "metadata": {"version": 1.0, "xxh3_128": asked.digest()},
    }


def documents(*, file: str, **_: object) -> dict[str, Any]:
    """Return the documents of a file as a data set.

    Raises:
        BadDataError: If there are none.
    """
    from datasets import Dataset

    texts = list(texts_in(Path(file)))
    return {"test": Dataset.from_dict({KEY: texts})}


def texts_in(file: Path) -> Iterable[str]:
    """Return the texts in a file.

    Raises:
        BadDataError: For what is none, and if there are none.
    """
    found = [
        text_of(document, KEY)
        for source in find_sources([file]).files
        for document in read_documents(source, SourceReading(), lambda _: None)
    ]
    texts = [text for text in found if text]
    if not texts:
        raise BadDataError("holds no text", where=file, wanted="at least one document")
    return texts


def standard_error(documents: Sequence[tuple[float, int]]) -> float | None:
    """Return the standard error of bits per byte, None for fewer than two documents.

    Of each document there are the log-likelihood (in nats) and the bytes. Bits per byte is a ratio
    of two sums over documents, so its error is that of a ratio estimator.
    """
    count, size = len(documents), sum(size for _, size in documents)
    if count < 2 or not size:
        return None
    bits = [(-likelihood / math.log(2), own) for likelihood, own in documents]
    ratio = sum(own for own, _ in bits) / size
    spread = sum((own - ratio * own_size) ** 2 for own, own_size in bits)
    return math.sqrt(spread * count / (count - 1)) / size


def add_standard_errors(results: dict[str, Any], names: Iterable[str]) -> None:
    """Put the standard errors of the tasks ``names`` into the harness's results, which has none."""
    for name in names:
        samples: Sequence[Mapping[str, Any]] = results["samples"].get(name, ())
        found = standard_error([tuple(sample[METRIC]) for sample in samples])
        results["results"][name][f"{METRIC}_stderr,none"] = "N/A" if found is None else found
