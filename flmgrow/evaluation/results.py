"""Result files of an evaluation: as lm-evaluation-harness writes them, whole or not at all.

::

    OUT/NAME/request.json           what was asked, and of which checkpoint
    OUT/NAME/samples_TASK_DATE.jsonl     every question with its answers
    OUT/NAME/results_DATE.json      the scores

That is the harness's own layout, which its tools read. ``results_*.json`` has one key more,
``flmgrow``: the checkpoint, and a sum over the file's content. The folder appears when all is in
it; a file that was cut or edited since is refused.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from flmgrow.errors import BadDataError, FlmgrowError, OutputExistsError, UsageError
from flmgrow.hub.evaluation import EvaluationScore, scores_in
from flmgrow.storage.content_sum import is_intact, with_sum
from flmgrow.storage.strict_json import Json, parse_object
from flmgrow.text import Setting, Text

REQUEST = "request.json"
OWN = "flmgrow"
"""The key of what is added to the harness's results."""
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What is to be known of a checkpoint beside its scores.

    ``tokens`` and ``flops`` are what its training has read and cost, None where nothing says it;
    ``stage`` is that of a run.
    """

    name: str
    parameters: int
    iteration: int | None = None
    stage: str | None = None
    tokens: int | None = None
    flops: int | None = None
    masks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a checkpoint, or of a file with scores, under the name of a table's column.

    ``shots`` are the examples before each question, by task; ``groups`` the names in each group;
    ``chances`` which share a guesser gets right, of the tasks that say it. ``facts`` are None where
    a file says nothing of the checkpoint.
    """

    name: str
    scores: tuple[EvaluationScore, ...]
    shots: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Facts | None = None
    chances: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return it as plain data."""
        facts = {} if self.facts is None else asdict(self.facts)
        return {**facts, "name": self.name, "scores": [asdict(score) for score in self.scores]}


def result_files(
    found: Mapping[str, Any], facts: Facts, request: Json
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of what the harness found, by name: samples of each task, the scores last.

    One is made at a time: the samples of a task may take hundreds of megabytes.
    """
    from lm_eval.utils import hash_string

    date = datetime.now().isoformat().replace(":", "-")
    samples = found.get("samples", {})
    hashes = {}
    for task, each in samples.items():
        sums = (one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in each)
        hashes[task] = hash_string("".join(sums))
        lines = "".join(f"{_dumped(_as_stored(one))}\n" for one in each)
        yield f"samples_{task}_{date}.jsonl", lines.encode()
    more = {
        "task_hashes": hashes,
        "model_source": OWN,
        "model_name": facts.name,
        "model_name_sanitized": file_name(facts.name),
        OWN: {"version": VERSION, "checkpoint": asdict(facts), "request": request},
    }
    kept = {key: value for key, value in found.items() if key != "samples"}
    content = json.loads(_dumped({**kept, **more}), parse_constant=lambda _: "N/A")
    yield f"results_{date}.json", json.dumps(with_sum(content), indent=2).encode()


def is_scores(name: str) -> bool:
    """Whether a file of this name holds scores, and not samples."""
    return name.startswith("results_")


def file_name(name: str) -> str:
    """Return a name as the harness writes it into a path."""
    from lm_eval.utils import sanitize_model_name

    return str(sanitize_model_name(name))


def _as_stored(sample: Mapping[str, Any]) -> Json:
    """Return a sample as the harness stores it: so that ``datasets`` can load it."""
    from lm_eval.utils import sanitize_list

    arguments = {
        f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(one)}
        for number, one in enumerate(sample["arguments"])
    }
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": arguments,
        "target": str(sample["target"]),
    }


def _dumped(data: Any) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(data, default=handle_non_serializable, ensure_ascii=False)


def read_finished(folder: Path, wanted: Json) -> EvaluationResult:
    """Return the result in a folder that is complete.

    Raises:
        OutputExistsError: If it is the answer to another request than ``wanted``.
        BadDataError: If a file is damaged.
    """
    asked = _read(folder / REQUEST)
    if asked != wanted:
        raise OutputExistsError(
            f"holds results of another request: {_differences(asked, wanted)}",
            Text("choose another ", Setting("out"), ", or remove the folder"),
            where=folder,
        )
    return read_result(newest_file(folder))


def newest_file(folder: Path) -> Path:
    """Return the newest file of results in a folder.

    Raises:
        UsageError: If there is none.
    """
    files = sorted(folder.glob("results_*.json"))
    if not files:
        raise UsageError("holds no results_*.json", where=folder)
    return files[-1]


def read_result(file: Path, name: str | None = None) -> EvaluationResult:
    """Return the scores in a file of flmgrow's or of lm-evaluation-harness's, under a name.

    Raises:
        BadDataError: For one that is damaged.
        UsageError: If there are no scores.
    """
    content = _read(file)
    own = content.get(OWN)
    if own is not None and not is_intact(content):
        raise BadDataError(
            "is not what was written there: it was edited, or the disk lost it",
            "remove it, and evaluate again",
            where=file,
        )
    facts = None if own is None else _facts(own, file)
    usual = content.get("model_name") or file.stem
    return EvaluationResult(
        name or (str(usual) if facts is None else facts.name),
        scores_in(content, str(file)),
        {task: shots for task, shots in content.get("n-shot", {}).items() if shots is not None},
        content.get("group_subtasks", {}),
        facts,
        dict(_chances(content)),
    )


def _chances(content: Json) -> Iterator[tuple[str, float]]:
    for task, config in content.get("configs", {}).items():
        chance = (config.get("metadata") or {}).get("chance")
        if isinstance(chance, float | int):
            yield task, float(chance)


def _facts(own: Json, file: Path) -> Facts:
    """Return what a file says of its checkpoint; another version may say more.

    Raises:
        BadDataError: If it says less.
    """
    known = {each.name for each in fields(Facts)}
    try:
        return Facts(**{name: said for name, said in own["checkpoint"].items() if name in known})
    except (AttributeError, KeyError, TypeError):
        raise BadDataError(
            "does not say of which checkpoint it is", "evaluate again", where=file
        ) from None


def results_below(place: Path) -> list[EvaluationResult]:
    """Return all results in a folder of evaluations, or in a file; in the order of their tokens."""
    if place.is_file():
        return [read_result(place)]
    folders = [place, *sorted(each for each in place.iterdir() if each.is_dir())]
    found = [read_result(newest_file(each)) for each in folders if any(each.glob("results_*.json"))]
    return sorted(found, key=lambda each: (each.facts.tokens or 0) if each.facts else 0)


def _read(file: Path) -> Json:
    try:
        return parse_object(file.read_bytes(), str(file))
    except FlmgrowError as error:
        raise BadDataError.of(error).with_hint(
            "it was cut short, or is another kind of file; remove it, and evaluate again"
        ) from None
    except OSError as error:
        raise UsageError(str(error.strerror), where=file) from None


def _differences(there: Json, here: Json) -> str:
    """Return the keys in which two requests differ, as ``seed: 0 there, 1 here``."""
    flat_there, flat_here = dict(_leaves(there)), dict(_leaves(here))
    keys = [key for key in {**flat_here, **flat_there} if flat_there.get(key) != flat_here.get(key)]
    return ", ".join(
        f"{key}: {_told(flat_there.get(key))} there, {_told(flat_here.get(key))} here"
        for key in keys
    )


def _leaves(value: Json, key: str = "") -> Iterable[tuple[str, object]]:
    for name, below in value.items():
        place = f"{key}.{name}" if key else name
        if isinstance(below, dict) and below:
            yield from _leaves(below, place)
        else:
            yield place, below


def _told(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
