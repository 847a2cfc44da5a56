"""Files on the disk that stand in for the data sets of the Hub.

A machine without a network cannot evaluate on what the Hub serves, and a set that changes there
changes a score. So the data of any task may lie in a folder: ``arc_challenge/test.jsonl`` under the
task's name, or ``ai2_arc/ARC-Challenge/test.jsonl`` under the data set's, a file for each split,
plain or compressed, with the fields that the Hub's set has. Which files were read, and their
checksum, stand in the results with the rest of a task's configuration.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmgrow.errors import BadDataError, UsageError
from flmgrow.storage.checksums import checksum_of
from flmgrow.trainer.data.documents import Document, SourceReading, read_documents
from flmgrow.trainer.data.sources import find_sources, is_lines

Config = dict[str, Any]
"""A task's configuration, as its YAML file has it."""

Rows = list[dict[str, Any]]

SPLITS = ("test_split", "validation_split")
"""The keys that name the split to evaluate on: the first of them that a task has."""
SHOTS = ("fewshot_split", "training_split", "validation_split")
"""The keys that name the split to take examples from, likewise."""


def read_rows(path: Path) -> Rows:
    """Return the objects of a file of JSON lines, plain or compressed.

    Raises:
        BadDataError: For a line that is no object, with file and line, and if there is none.
        UsageError: For another kind of file.
    """
    (source,) = find_sources([path]).files
    if not source.lines or source.is_table:
        raise UsageError("wanted .jsonl with one object on each line", where=path)
    rows = [_row(document) for document in read_documents(source, SourceReading(), lambda _: None)]
    if not rows:
        raise BadDataError("holds no line", where=path)
    return rows


def _row(document: Document) -> dict[str, Any]:
    try:
        row = json.loads(document.data)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"not JSON: {error}", where=document.place) from None
    if not isinstance(row, dict):
        raise BadDataError("no object", where=document.place, wanted="one on each line")
    return row


def override(config: Config, files: Mapping[str, Path], shots: int | None = None) -> Config:
    """Return the keys that make a task read its splits from files; the rest stays as it is.

    ``shots`` is how many examples are asked for, if that is not the task's to say. Whether a split
    is missing that the task needs is found out when the task is loaded.
    """
    absent = [key for key in (*SPLITS, *SHOTS) if config.get(key) and config[key] not in files]
    return {
        **dict.fromkeys(absent),
        "custom_dataset": data_set,
        "dataset_kwargs": {
            "files": {split: str(path) for split, path in files.items()},
            "xxh3_128": {split: checksum_of(path) for split, path in files.items()},
            "needed": needed(config, shots),
        },
    }


def data_set(files: Mapping[str, str], needed: Mapping[str, str], **_: object) -> Any:
    """Return the splits in ``files`` as lm-eval wants them: a DatasetDict.

    lm-eval calls it, and passes a task's metadata along. ``needed`` says of splits what they are
    for.

    Raises:
        UsageError: If one of them is missing.
        BadDataError: For a file that is not of lines of one kind.
    """
    from datasets import Dataset, DatasetDict

    for split, purpose in needed.items():
        if split not in files:
            folder = Path(next(iter(files.values()))).parent
            raise UsageError(f"no {split}.jsonl", f"the task {purpose}", where=folder)
    made = {}
    for split, path in files.items():
        try:
            made[split] = Dataset.from_list(read_rows(Path(path)))
        except (ValueError, TypeError, OverflowError) as error:  # pyarrow's are of these
            told = str(error).partition("\n")[0]
            raise BadDataError(f"lines of different kinds: {told}", where=path) from None
    return DatasetDict(made)


def needed(config: Config, shots: int | None) -> dict[str, str]:
    """Return the splits that a task cannot do without, and what each is for."""
    found: dict[str, str] = {}
    if (config.get("num_fewshot") if shots is None else shots) != 0:
        found |= dict.fromkeys(_first(config, SHOTS), "takes its examples from it")
    return found | dict.fromkeys(_first(config, SPLITS), "evaluates on it")


def _first(config: Config, keys: Sequence[str]) -> list[str]:
    return [str(config[key]) for key in keys if config.get(key)][:1]


def files_of(config: Config, data: Path) -> dict[str, Path]:
    """Return a task's files in the folder ``data`` by the split that each is; may be none."""
    folder = folder_of(config, data)
    found = sorted(folder.iterdir()) if folder else []
    return {file.name.partition(".")[0]: file for file in found if _held(file)}


def folder_of(config: Config, data: Path) -> Path | None:
    """Return the folder in ``data`` that holds a task's data; None if there is none.

    It is called as the task, or as its data set without the owner (and the set's configuration
    below it).
    """
    return next((folder for folder in places(config, data) if folder.is_dir()), None)


def places(config: Config, data: Path) -> list[Path]:
    """Return where a task's data is looked for, in order."""
    if "group" in config or "task" not in config:
        return []
    path, name = config.get("dataset_path"), config.get("dataset_name")
    found = [data / str(config["task"])]
    if isinstance(path, str):
        below = data / path.rpartition("/")[2]
        found.append(below / name if name else below)
    return found


def _held(file: Path) -> bool:
    return file.is_file() and is_lines(file)
