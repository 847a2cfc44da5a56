"""A study file: arms, each a way to train a model, of which one wants to know which pays.

::

    base: {...}                         # the sections of a stage file, for all arms
    sizes:
      small: {num_layers: 2, hidden_size: 64, num_attention_heads: 4}
      large: {num_layers: 4, hidden_size: 128, num_attention_heads: 8}
    rates: {grid: [2.0e-3, 4.0e-3, 8.0e-3], tokens: 300K}
    seeds: [1, 2, 3]
    compare: [flops, tokens]
    arms:
      scratch: {size: large, tokens: 1M, scratch: true}
      grown:
        tokens: 1M
        stages: [{size: small, share: 80}, {size: large, share: 20}]
        grown: {growth: {method: mask}}

An arm becomes a schedule, as ``flmgrow run`` takes it. What an arm says stands over what the study
says for all of them, and what it leaves out it takes from the arm that it is ``like``, if any.
Lengths may all be scaled by one factor, so that a study of an hour can be tried in minutes.
"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from flmgrow.errors import UsageError
from flmgrow.stages.schedule import merge
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.storage.validation import problems
from flmgrow.studying.outcomes import Expense
from flmgrow.text import Found, Text
from flmgrow.trainer.stage.section import (
    Amount,
    Name,
    Positive,
    Section,
    Seed,
    amount,
    nearest,
)

HINT = "see docs/guides/study.md"

LENGTHS = (
    "tokens", "flops", "steps", "warmup_samples", "decay_tokens", "cooldown_tokens", "ramp_steps",
    "validation_every", "every",
)  # fmt: skip
"""What ``scale`` multiplies, wherever in a study file it stands."""


class OwnSections(Section):
    """What an arm, or a stage of one, says in sections of a stage file of its own."""

    training: Json | None = None
    learning_rate: Json | None = None
    optimizer: Json | None = None
    masks: Json | None = None
    data: Json | None = None
    layout: Json | None = None
    guard: Json | None = None

    @property
    def sections(self) -> Json:
        """The sections that are given."""
        given = {name: getattr(self, name) for name in OwnSections.model_fields}
        return {name: value for name, value in given.items() if value is not None}


class GrownSections(OwnSections):
    """What holds for the stages that begin with a growth, as a schedule says it."""

    growth: Json | None = None

    @property
    def sections(self) -> Json:
        """The sections that are given, the growth among them."""
        return super().sections | ({} if self.growth is None else {"growth": self.growth})


class StageSection(GrownSections):
    """A stage of an arm: its size, and its share of the arm's tokens, in any unit."""

    size: str
    share: Positive = 1.0


class ArmSection(OwnSections):
    """An arm: how long it is, its stages, and what is its own.

    It has so many ``tokens``, or as many as cost so many ``flops``. ``scratch``: a point of the
    frontier that the others are compared with. ``decay`` is the part of its last stage in which the
    learning rate falls; the study's, if not given. ``words`` tell it in a report.
    """

    words: str | None = None
    scratch: bool = False
    tokens: Amount | None = None
    flops: Positive | None = None
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    stages: list[StageSection] = Field(min_length=1)
    grown: GrownSections = GrownSections()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.tokens is None) == (self.flops is None):
            raise ValueError("give either tokens or flops")
        return self


class RatesSection(Section):
    """The peak of the learning rate for each size.

    Either the best of a ``grid``, tried by ``flmgrow search`` at each size, for so many ``tokens``;
    or ``values``, with the ``source`` that they come from.
    """

    grid: list[Positive] = Field(default_factory=list)
    tokens: Amount | None = None
    seeds: list[Seed] = Field(default=[1], min_length=1)
    values: dict[str, Positive] = Field(default_factory=dict)
    source: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.grid) == bool(self.values):
            raise ValueError("give either grid or values")
        if bool(self.grid) != (self.tokens is not None):
            raise ValueError("grid and tokens go together: give both, or neither")
        if self.values and not self.source:
            raise ValueError("values need a source: say where they come from")
        return self


class StudyFile(Section):
    """A study: what all arms have in common, sizes by name, learning rates, seeds, and arms."""

    base: Json
    sizes: dict[Name, Json] = Field(min_length=1)
    rates: RatesSection
    seeds: list[Seed] = Field(min_length=1)
    compare: list[Annotated[Expense, Field(strict=False)]] = Field(
        default=[Expense.FLOPS, Expense.TOKENS], min_length=1
    )
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    grown: GrownSections = GrownSections()
    arms: dict[Name, ArmSection] = Field(min_length=1)


def read_study(path: Path, scale: float = 1.0) -> StudyFile:
    """Return the study in a file, all lengths multiplied by ``scale``.

    Raises:
        UsageError: For what is unknown or does not fit together; the message names file and key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("arms"), dict):
        raise UsageError("has no arms", HINT, where=path)
    arms = {name: _filled(path, data["arms"], name) for name in data["arms"]}
    scaled: Any = _scaled({**data, "arms": arms}, Fraction(scale).limit_denominator(10**6))
    try:
        study = StudyFile.model_validate(scaled)
    except ValidationError as error:
        raise UsageError(problems(error.errors()), HINT, where=path) from None
    _check(path, study)
    return study


def _filled(path: Path, arms: Mapping[str, Any], name: str, above: tuple[str, ...] = ()) -> Json:
    """Return an arm with what it takes from those that it is like, and its size as a stage."""
    own = arms.get(name)
    where = (path, f"arms.{name}")
    if not isinstance(own, dict):
        raise UsageError(Text("is ", Found(f"{own!r:.60}")), HINT, where, "a mapping")
    own = dict(own)
    if "size" in own:
        if "stages" in own:
            raise UsageError("has a size and stages", "an arm of one stage says its size", where)
        own["stages"] = [{"size": own.pop("size")}]
    like = own.pop("like", None)
    if like is None:
        return own
    if like not in arms or like == name or like in above:
        raise UsageError(
            Text("like: is ", Found(f"{like!r:.60}")), HINT, where, "another arm, not like this one"
        )
    filled = _filled(path, arms, like, (*above, name))
    for mine, other in (("tokens", "flops"), ("flops", "tokens")):
        if mine in own:
            filled.pop(other, None)
    # Another arm's words tell of that one, and its end is no second point of the frontier.
    rest = {key: value for key, value in filled.items() if key not in ("words", "scratch")}
    return merge(rest, own)


def _scaled(value: object, factor: Fraction, key: object = None) -> object:
    """Return what a study file holds with each length multiplied, at least one step, or token."""
    if isinstance(value, dict):
        return {name: _scaled(inside, factor, name) for name, inside in value.items()}
    if isinstance(value, list):
        return [_scaled(inside, factor) for inside in value]
    if key not in LENGTHS or factor == 1:
        return value
    number = amount(value)
    if isinstance(number, float):
        return number * float(factor)
    if not isinstance(number, int) or isinstance(number, bool):
        return value  # what is wrong with it is told where it is read
    return max(1, nearest(number * factor)) if number else 0


def _check(path: Path, study: StudyFile) -> None:
    if len(set(study.seeds)) != len(study.seeds):
        raise UsageError("has a seed twice", "list each seed once", where=(path, "seeds"))
    _check_arms(path, study)
    _check_rates(path, study)


def _check_arms(path: Path, study: StudyFile) -> None:
    for name, arm in study.arms.items():
        for stage in arm.stages:
            if stage.size not in study.sizes:
                raise UsageError(
                    Text("has the size ", Found(f"{stage.size!r:.60}")),
                    HINT,
                    (path, f"arms.{name}"),
                    f"one of {', '.join(study.sizes)}",
                )
        if arm.scratch and len(arm.stages) > 1:
            raise UsageError(
                "is grown", "what is trained from scratch has one stage", (path, f"arms.{name}")
            )
    sizes = {arm.stages[0].size for arm in study.arms.values() if arm.scratch}
    if len(sizes) > 1:
        raise UsageError(
            f"the arms from scratch are of the sizes {', '.join(sorted(sizes))}",
            "a frontier is one size, trained for several lengths",
            where=(path, "arms"),
        )


def _check_rates(path: Path, study: StudyFile) -> None:
    if study.rates.values:
        for size in used_sizes(study):
            if size not in study.rates.values:
                raise UsageError(
                    f"no rate is given for the size {size}",
                    "say it, or give a grid for flmgrow search",
                    where=(path, "rates.values"),
                )
    if "peak" in study.base.get("learning_rate", {}):
        raise UsageError(
            "is given",
            "the peak belongs to a size: say it in rates",
            where=(path, "base.learning_rate.peak"),
        )


def used_sizes(study: StudyFile) -> list[str]:
    """Return the sizes that arms have, in the study's order."""
    used = {stage.size for arm in study.arms.values() for stage in arm.stages}
    return [name for name in study.sizes if name in used]
