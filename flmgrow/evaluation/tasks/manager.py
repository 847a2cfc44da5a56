"""lm-eval's tasks with those of this package, from one seed, with data of the Hub or of a folder.

lm-eval finds tasks by reading the YAML files of its own folder and of those it is given, and its
manager loads them by name. :func:`task_manager` makes one that knows this package's tasks, gives
the seed to all of them, and takes data from the disk where it lies there: such a task gets a YAML
file that includes its own and says where the data is. The seed and the files that were read stand
in the results, under a task's ``metadata`` and ``dataset_kwargs``.
"""

import json
import shutil
import weakref
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from lm_eval.tasks import TaskManager

from flmgrow.errors import UsageError
from flmgrow.evaluation.tasks import FOLDER
from flmgrow.evaluation.tasks.local_data import files_of, override

FROM_ONE_FILE = ("symbolic", "teacher")
"""Tasks that are made of one file of JSON lines."""


def task_manager(
    seed: int, data: Path | None = None, shots: int | None = None, *, theirs: bool = True
) -> TaskManager:
    """Return a manager that loads tasks by their names, this package's and lm-eval's own.

    Without ``theirs``, it knows this package's alone: to find lm-eval's takes seconds.

    ``data`` is a folder with the data of any tasks (:mod:`flmgrow.evaluation.tasks.local_data`), or
    a file of JSON lines for the tasks that are made of one. ``shots`` is how many examples each
    task will be asked for, if that is not the tasks' to say. What
    is wrong with data is raised when a task with it is loaded.

    Raises:
        UsageError: For a path that is missing.
    """
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=theirs, metadata={"seed": seed}
    )
    return manager if data is None else with_local_data(manager, data, shots)


def with_local_data(manager: TaskManager, data: Path, shots: int | None = None) -> TaskManager:
    """Return the manager, whose tasks now take their data from ``data`` where it lies there."""
    folder = Path(mkdtemp(prefix="flmgrow-tasks-"))
    weakref.finalize(manager, shutil.rmtree, folder, ignore_errors=True)
    for name, files in _local(manager, data).items():
        entry = manager.task_index[name]
        written = folder / f"{name}.yaml"
        written.write_text(_yaml(entry.yaml_path, override(entry.cfg, files, shots)))
        entry.yaml_path = written
    return manager


def _local(manager: TaskManager, data: Path) -> dict[str, dict[str, Path]]:
    """Return the files of each task whose data lies in ``data``, by split."""
    if data.is_file():
        return {name: {"validation": data} for name in FROM_ONE_FILE if name in manager.task_index}
    if not data.is_dir():
        raise UsageError("no such file or folder", where=data)
    found = {
        name: files_of(entry.cfg, data)
        for name, entry in manager.task_index.items()
        if entry.yaml_path and entry.cfg
    }
    return {name: files for name, files in found.items() if files}


def _yaml(base: Path, changes: dict[str, Any]) -> str:
    """Return a YAML file that includes another one and has other values for some keys."""
    function = changes.pop("custom_dataset")
    lines = {"include": str(base), **changes}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()) + (
        f"custom_dataset: !function {function.__module__}.{function.__name__}\n"
    )
