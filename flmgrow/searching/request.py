"""A search file: a small stage, and the settings that are tried on it.

::

    stage: proxy.yaml
    grid:
      learning_rate.peak: [1.0e-3, 2.0e-3, 4.0e-3]
      training.init_std: [0.008, 0.016, 0.032]
    seeds: [1, 2, 3]
    random: {points: 20, seed: 0}     # a sample of the grid instead of all of it

Any key of a stage file may be an axis. Every point of the grid is a stage of its own, checked as
``train`` would check it before the first one begins.
"""

import random as drawing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pydantic import Field, ValidationError

from flmgrow.errors import UsageError
from flmgrow.model.wording import value_text
from flmgrow.stages.trial_folder import in_its_folder
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.storage.validation import problems
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.stage.file import StageFile, stage_of
from flmgrow.trainer.stage.section import Count, FilePath, Section, Seed

Value = int | float | str | bool

MOST_POINTS = 10_000
SEED = "training.seed"

OWN = ("name", "checkpoint.folder", "checkpoint.keep", "log.metrics", "log.tensorboard")
"""What a search sets itself: each trial is named, and writes into its own folder."""


class RandomSection(Section):
    """How many points of the grid are taken, and the seed by which they are drawn."""

    points: Count
    seed: Seed = 0


class SearchFile(Section):
    """A search: the proxy's stage file, the values of each key that is tried, and seeds."""

    stage: FilePath
    grid: dict[str, list[Value]] = Field(min_length=1)
    seeds: list[Seed] = Field(default=[1234], min_length=1)
    random: RandomSection | None = None


@dataclass(frozen=True)
class GridPoint:
    """A point of the grid: its ``settings`` by key, and the model's ``width`` where several are
    compared.
    """

    settings: Mapping[str, Value]
    width: int | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.settings.items()), self.width))

    @property
    def text(self) -> str:
        """The point as people read it."""
        named = [
            f"{key.rpartition('.')[2]} {value_text(value)}" for key, value in self.settings.items()
        ]
        return ", ".join([*([f"width {self.width}"] if self.width else []), *named])


@dataclass(frozen=True, eq=False)
class Trial:
    """A point with a seed: a stage to be trained in the folder ``name`` of the search's."""

    name: str
    point: GridPoint
    seed: int
    stage: StageFile


@dataclass(frozen=True, eq=False)
class Search:
    """A search file, read: every trial, in order."""

    file: SearchFile
    trials: Sequence[Trial] = field(default=())

    @property
    def points(self) -> list[GridPoint]:
        """The points that are tried, each once."""
        return list(dict.fromkeys(trial.point for trial in self.trials))


def read_search(path: Path, widths: Sequence[int] = ()) -> Search:
    """Return the search in a file, at each of the ``widths`` if there are any.

    Raises:
        UsageError: For what no stage can be: a key that there is not, a value that does not fit, a
            width that is no multiple of the head size; the message names file and key.
    """
    data = read_yaml(path)
    try:
        file = SearchFile.model_validate(data)
    except ValidationError as error:
        hint = "see docs/guides/search.md"
        raise UsageError(problems(error.errors()), hint, where=path) from None
    base = path.absolute().parent / file.stage
    proxy = read_yaml(base)
    if not isinstance(proxy, dict) or "stages" in proxy:
        raise UsageError(
            "is no stage file",
            "give a file as train takes it: one stage, not a schedule",
            where=base,
        )
    if "growth" in proxy:
        raise UsageError(
            "growth: each trial would train the stage before anew, in the same folder",
            "train that once, grow it, and name the result as checkpoint.load",
            where=base,
        )
    points = [
        GridPoint(settings, width)
        for width in widths or (None,)
        for settings in _settings(path, file)
    ]
    trials = _trials(path, base, file, points, proxy)
    return Search(file, list(trials))


def _settings(path: Path, file: SearchFile) -> list[dict[str, Value]]:
    if len(set(file.seeds)) != len(file.seeds):
        raise UsageError("has a seed twice", "list each seed once", where=(path, "seeds"))
    for key, values in file.grid.items():
        where = (path, f"grid.{key}")
        # As numbers: 1, 1.0 and true are one point, and would be reported as one.
        if not values or len(set(values)) != len(values):
            found = "has no values" if not values else "has a value twice"
            raise UsageError(found, "list each value to be tried once", where=where)
        if key == SEED:
            raise UsageError("is no axis", "list them under seeds", where=where)
        if key in OWN:
            raise UsageError("is no axis", "each trial has a folder of its own", where=where)
    count = 1
    for values in file.grid.values():
        count *= len(values)
    if count * len(file.seeds) > MOST_POINTS and file.random is None:
        raise UsageError(
            Text("has ", Found(f"{count:,}"), f" points and {len(file.seeds)} seeds"),
            "take a sample of them: random: {points: 100}",
            where=path,
            wanted=f"at most {MOST_POINTS:,} trials",
        )
    if file.random is None:
        every = product(*file.grid.values())
        return [dict(zip(file.grid, values, strict=True)) for values in every]
    return _drawn(file.grid, min(file.random.points, count), file.random.seed)


def _drawn(grid: Mapping[str, Sequence[Value]], count: int, seed: int) -> list[dict[str, Value]]:
    """Return so many different points of the grid, drawn evenly."""
    source = drawing.Random(seed)
    sizes = [len(values) for values in grid.values()]
    whole = 1
    for size in sizes:
        whole *= size
    found = []
    for number in source.sample(range(whole), count):
        settings = {}
        for key, values in grid.items():
            number, place = divmod(number, len(values))
            settings[key] = values[place]
        found.append(settings)
    return found


def _trials(
    path: Path, base: Path, file: SearchFile, points: Sequence[GridPoint], proxy: Json
) -> Iterator[Trial]:
    digits = len(str(len(points)))
    for number, point in enumerate(points, 1):
        for seed in file.seeds:
            name = f"{number:0{digits}d}-seed{seed}"
            settings = {**point.settings, SEED: seed}
            data = proxy
            for key, value in settings.items():
                data = with_setting(data, key, value, (path, f"grid.{key}"))
            try:
                stage = stage_of({**data, "name": name}, base)
                if point.width is not None:
                    stage = stage_of({**at_width(data, point.width), "name": name}, base)
            except UsageError as error:
                raise error.relative_to(base).at(path, point.text) from None
            if len(file.seeds) > 1 and stage.checkpoint.load is not None:
                raise UsageError(
                    Text("are ", Found(len(file.seeds)), ", but draw fresh weights alone"),
                    "give one: each trial begins with checkpoint.load, and is the same for any",
                    where=(path, "seeds"),
                )
            yield Trial(name, point, seed, in_its_folder(stage))


def with_setting(data: Json, key: str, value: object, where: tuple[object, ...] = ()) -> Json:
    """Return the content of a file with another value at a dotted key.

    Raises:
        UsageError: For a key inside something that has none.
    """
    name, dot, rest = key.partition(".")
    if not dot:
        return {**data, name: value}
    inside = data.get(name, {})
    if not isinstance(inside, dict):
        raise UsageError(
            Text(f"{name} is ", Found(f"{inside!r:.60}")), where=where, wanted="a section"
        )
    return {**data, name: with_setting(inside, rest, value, where)}


def at_width(data: Json, width: int) -> Json:
    """Return the content of a valid stage file for a model of another width, of the same shape.

    Heads keep their size and come in other numbers; the FFN keeps its ratio; depth stays.

    Raises:
        UsageError: Where that does not come out even.
    """
    model = dict(data.get("model", {}))
    hidden, heads = model.get("hidden_size"), model.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        raise UsageError("the stage does not say hidden_size and num_attention_heads")
    scaled = ["num_attention_heads", "num_query_groups", "ffn_hidden_size"]
    for name in scaled:
        value = model.get(name)
        if value is None:
            continue
        if value * width % hidden:
            raise UsageError(
                Text(Setting("transfer"), f" {width}: {name} {value} of width {hidden} becomes "
                     f"{value * width / hidden:g}"),
                f"give widths that keep heads of {hidden // heads} whole",
            )  # fmt: skip
        model[name] = value * width // hidden
    model.setdefault("kv_channels", hidden // heads)
    return {**data, "model": {**model, "hidden_size": width}}
