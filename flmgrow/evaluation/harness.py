"""Asking a model what a request asks, by lm-evaluation-harness: its tasks, prompts and metrics.

What the harness finds is kept as it is. Added are what it has no word for: a group's own average,
the standard error of bits per byte, and the sample of a set that a group asks for. And what it, the
Hub or somebody's task file raise is told in one line.
"""

import difflib
import math
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.evaluation.bits_per_byte import add_standard_errors, task_config
from flmgrow.evaluation.data_sets import told_if_missing
from flmgrow.evaluation.quiet import quiet
from flmgrow.evaluation.request import BITS_PER_BYTE, EvaluationRequest
from flmgrow.text import Setting, Text

AVERAGE, SHARES = "average", "shares"
"""What a group's metadata may say: which metric of which task is averaged, and which share of which
task's questions is asked."""
_NEAR = 3
"""Names that are suggested for one that is unknown."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """The tasks of a request, loaded: the harness's own objects, data sets and all.

    ``loaded`` are what was asked for, tasks and groups; ``samples`` the questions of those tasks of
    which not all are asked. ``manager`` has loaded them.
    """

    request: EvaluationRequest
    manager: Any
    loaded: Mapping[str, Any]
    samples: Mapping[str, Sequence[int]]

    @property
    def averages(self) -> dict[str, Mapping[str, str]]:
        """The metric of each task in every group that has an average."""
        found = {name: group.metadata or {} for name, group in self._groups.items()}
        return {name: said[AVERAGE] for name, said in found.items() if AVERAGE in said}

    @property
    def _groups(self) -> Mapping[str, Any]:
        groups: Mapping[str, Any] = self.loaded.get("groups", {})
        return groups


def load_tasks(request: EvaluationRequest) -> Tasks:
    """Load the tasks of a request, and their data.

    Raises:
        UsageError: For an unknown task, and one that stands in two groups.
        BadDataError: For a bad task file.
        HubError: The Hub refuses, or does not answer.
    """
    folder = request.data if request.data is not None and request.data.is_dir() else None
    with quiet(), told_if_missing(folder):
        with _one_line("the tasks"):
            manager = _manager(request)
        built = [_built(manager, asked) for asked in request.tasks]
        with _one_line("the tasks"):
            loaded = manager.load([each for several in built for each in several])
        return Tasks(request, manager, loaded, _drawn(request, loaded))


def evaluate(model: Any, tasks: Tasks) -> dict[str, Any]:
    """Return what the harness finds out of ``model`` (an ``lm_eval.api.model.LM``).

    It is the content of its result files, samples and all. On all ranks of ``model`` but the first
    it is empty. Seed 0 draws the examples that the harness draws where it is given none.

    Raises:
        BadDataError: Where a task cannot be asked.
    """
    from lm_eval import simple_evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    request = tasks.request
    other = DEFAULT_OTHER_SEED + request.seed
    loaded = list(_outermost(tasks.loaded))
    with quiet(), _one_line("evaluating"):
        found: dict[str, Any] | None = simple_evaluate(
            model=model,
            tasks=loaded,
            task_manager=tasks.manager,
            num_fewshot=request.shots,
            samples=dict(tasks.samples) or None,
            limit=None if tasks.samples else request.limit,
            random_seed=DEFAULT_RANDOM_SEED + request.seed,
            numpy_random_seed=other,
            torch_random_seed=other,
            fewshot_random_seed=other,
        )
    if found is None:
        return {}
    texts = [each.task for each in request.tasks if each.name == BITS_PER_BYTE]
    add_standard_errors(found, texts)
    for group, metrics in tasks.averages.items():
        found["results"].setdefault(group, {"alias": group}).update(
            _average(found["results"], metrics)
        )
    return found


def _manager(request: EvaluationRequest) -> Any:
    """Return what knows the tasks of a request: of lm-eval's own, only where they are needed."""
    from flmgrow.evaluation.tasks.manager import task_manager

    asked = (request.seed, request.data, request.shots)
    few = task_manager(*asked, theirs=False)
    names = [each.name for each in request.tasks if each.file is None]
    return few if all(_knows(few, name) for name in names) else task_manager(*asked)


def _knows(manager: Any, name: str) -> bool:
    """Whether a manager has a task, or all that is in a group."""
    entry = manager.task_index.get(name)
    members = (entry.cfg or {}).get("task") if entry is not None else None
    if not isinstance(members, list):
        return entry is not None
    return all(isinstance(each, str) and _knows(manager, each) for each in members)


def _built(manager: Any, asked: Any) -> list[Any]:
    """Return what the harness makes of a name: tasks and groups, or of a text its configuration."""
    if asked.file is not None:
        with _one_line(f"task {asked.task}"):
            return list(manager.load([task_config(asked)])["tasks"].values())
    names = manager.match_tasks([asked.name]) if "*" in asked.name else [asked.name]
    known = asked.name in manager.all_tasks
    if not names or not (known or "*" in asked.name or Path(asked.name).is_file()):
        near = difflib.get_close_matches(asked.name, [*manager.all_tasks, BITS_PER_BYTE], _NEAR)
        hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists them"
        raise UsageError(f"task {asked.name}: there is no such task", hint)
    with _one_line(f"task {asked.name}"):
        if not known and Path(asked.name).is_file():
            _refuse_group(Path(asked.name))
        found = manager.load(names)
        return list(_outermost(found))


def _refuse_group(file: Path) -> None:
    """Raise UsageError for the file of a group: the harness finds groups by their names alone."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if "group" in load_yaml(file, resolve_func=False):
        raise UsageError("is a group, which is asked for by its name", where=file)


def _outermost(loaded: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the groups and tasks that no other group has in it."""
    groups = loaded.get("groups", {})
    inner = {name for children in loaded.get("group_map", {}).values() for name in children}
    for name, item in {**groups, **loaded["tasks"]}.items():
        if name not in inner:
            yield item


def _drawn(request: EvaluationRequest, loaded: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the numbers of the questions to ask, of all tasks if some group asks for a sample."""
    shares: dict[str, float] = {}
    for group in loaded.get("groups", {}).values():
        for name, share in (group.metadata or {}).get(SHARES, {}).items():
            inner = group.get(name)
            tasks = inner.get_all_tasks() if hasattr(inner, "get_all_tasks") else [inner]
            shares |= {task.task_name: share for task in tasks}
    if not shares:
        return {}
    found = {}
    for name, task in loaded["tasks"].items():
        count = len(task.eval_docs)
        numbers = _sample(name, count, shares.get(name, 1.0), request.seed)
        found[name] = numbers[: request.limit]
    return found


def _sample(name: str, count: int, share: float, seed: int) -> list[int]:
    """Return the share of ``count`` numbers that a seed draws for a task, in order."""
    if share >= 1:
        return list(range(count))
    draw = random.Random(xxhash.xxh3_64_intdigest(f"{seed} {name}".encode()))
    return sorted(draw.sample(range(count), max(1, round(share * count))))


def _average(results: Mapping[str, Any], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Return the mean of one metric of each task, and its standard error."""
    found = [results[task] for task in metrics]
    values = [each[f"{metric},none"] for each, metric in zip(found, metrics.values(), strict=True)]
    errors = [
        each.get(f"{metric}_stderr,none")
        for each, metric in zip(found, metrics.values(), strict=True)
    ]
    known = all(isinstance(error, float) for error in errors)
    return {
        "average,none": sum(values) / len(values),
        "average_stderr,none": math.hypot(*errors) / len(values) if known else "N/A",
    }


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Tell what the harness, or a task file's code, raises inside the block in one line.

    What this package raises further down is a mistake of its own, and stays what it is.
    """
    try:
        yield
    except FlmgrowError:
        raise
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f", line {place.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise BadDataError(f"is no YAML{line}: {problem}", where=what) from error
    except Exception as error:
        if _is_ours(error):
            raise
        said = " ".join(str(error).split()) or "no word"
        if "Duplicate task" in said:
            raise UsageError(
                said.replace("Duplicate task", "task").replace(": found in", " stands in"),
                Text("evaluate them one at a time, each with an own ", Setting("out")),
            ) from error
        raise BadDataError(
            f"lm-evaluation-harness: {type(error).__name__}: {said}",
            "look at the task's file and data",
            where=what,
        ) from error


def _is_ours(error: Exception) -> bool:
    """Whether code of this package raised it, other than that of this file and of tasks."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    package = str(Path(__file__).parents[1])
    own = [name for name in frames if name.startswith(package) and name != __file__]
    return bool(own)
