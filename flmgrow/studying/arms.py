"""The arms of a study as schedules: what is said once for all of them, and what is an arm's own.

Everything that decides on fairness is made here, for all arms alike: the seed of the weights, the
order of samples and the growth's own chance follow the study's seed; a size's learning rate is that
size's, whatever arm it is part of; and the rate of every arm has fallen where it ends. Stages that
are grown further keep their peak, as warm-up-stable-decay has it (Hu et al., 2024): a rate that has
fallen before a growth would have to rise again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from flmgrow.errors import UsageError
from flmgrow.model.flops import training_flops
from flmgrow.model.wording import amount
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.schedule import merge, planned_stages
from flmgrow.storage.strict_json import Json
from flmgrow.storage.validation import problems
from flmgrow.studying.request import HINT, ArmSection, StudyFile
from flmgrow.trainer.stage.model import ModelSection
from flmgrow.trainer.stage.section import nearest

PeakRates = Mapping[str, float]
"""The peak of the learning rate for each size."""


@dataclass(frozen=True, eq=False)
class PlannedArm:
    """An arm with a seed: its stages, as a run would plan them."""

    name: str
    seed: int
    section: ArmSection
    stages: tuple[PlannedStage, ...]

    @property
    def tokens(self) -> int:
        """The tokens that it reads in all its stages."""
        return sum(each.steps * each.stage.tokens_per_step for each in self.stages)

    @property
    def flops(self) -> int:
        """The operations of all its stages."""
        return sum(each.flops for each in self.stages)


def planned_arms(study: StudyFile, path: Path, rates: PeakRates) -> list[PlannedArm]:
    """Return each arm of the study in the file ``path`` with each seed.

    Raises:
        UsageError: For what ``flmgrow run`` would refuse; the message names arm and stage.
    """
    planned = []
    for name, arm in study.arms.items():
        for seed in study.seeds:
            try:
                stages = planned_stages(schedule_of(study, arm, seed, rates), path)
                _check_on_disk(stages)
            except UsageError as error:
                raise error.relative_to(path).at(path, f"arm {name}") from None
            planned.append(PlannedArm(name, seed, arm, tuple(stages)))
    return planned


def _check_on_disk(stages: Sequence[PlannedStage]) -> None:
    """Raise UsageError for a growth in memory: what several arms share must be a checkpoint."""
    for planned in stages:
        if planned.in_place:
            raise UsageError(
                "growth.in_place: arms begin with checkpoints that others may share",
                "leave it out: the bits are the same",
                where=f"stage {planned.stage.name}",
            )


def schedule_of(study: StudyFile, arm: ArmSection, seed: int, rates: PeakRates) -> Json:
    """Return the schedule of an arm with a seed."""
    own = [_own(study, arm, number, seed, rates) for number in range(len(arm.stages))]
    whole = [merge(study.base, stage) for stage in own]
    decay = study.decay if arm.decay is None else arm.decay
    for number, steps in enumerate(_lengths(arm, whole)):
        last = number == len(own) - 1
        own[number]["training"] = {**own[number]["training"], "steps": steps}
        own[number]["learning_rate"] = _rate(whole[number], steps, decay if last else None)
    return {**study.base, "stages": own}


def sized_stage(study: StudyFile, size: str) -> Json:
    """Return the stage on which a size's learning rate is searched, as a stage file says it."""
    found = merge(study.base, {"name": size, "model": study.sizes[size]})
    tokens = Fraction(study.rates.tokens or 1)
    steps = max(1, nearest(tokens / tokens_per_step(found)))
    found = merge(found, {"training": {"steps": steps}, "learning_rate": {"peak": 1.0}})
    return {**found, "learning_rate": _rate(found, steps, study.decay)}


def _own(study: StudyFile, arm: ArmSection, number: int, seed: int, rates: PeakRates) -> Json:
    """Return what is said of a stage alone, but for its length."""
    stage = arm.stages[number]
    found: Json = {
        "name": _name(arm, number),
        "model": study.sizes[stage.size],
        "learning_rate": {"peak": rates[stage.size]},
        "training": {"seed": seed},
        "data": {"seed": seed},
    }
    if number:
        found["growth"] = {"seed": seed}
    parts = [study.grown.sections, arm.sections, arm.grown.sections]
    for part in (*(parts if number else parts[1:2]), stage.sections):
        found = merge(found, part)
    return found


def _name(arm: ArmSection, number: int) -> str:
    """Return a stage's name: its size, and which of several of that size it is."""
    size = arm.stages[number].size
    before = [stage.size for stage in arm.stages[:number]].count(size)
    return size if not before else f"{size}-{before + 1}"


def _lengths(arm: ArmSection, stages: Sequence[Json]) -> list[int]:
    """Return each stage's steps: its share of the arm's tokens, the last one what is left."""
    shares = [Fraction(each.share).limit_denominator(10**6) for each in arm.stages]
    parts = [share / sum(shares) for share in shares]
    per_step = [tokens_per_step(stage) for stage in stages]
    if arm.tokens is not None:
        tokens = Fraction(arm.tokens)
    else:
        assert arm.flops is not None
        if any(stage["training"].get("freeze") is not None for stage in stages):
            raise UsageError(
                "flops with training.freeze: what is frozen costs less than is counted here",
                "give tokens",
            )
        costs = map(flops_per_token, stages)
        tokens = Fraction(arm.flops) / sum(x * cost for x, cost in zip(parts, costs, strict=True))
    steps = [
        max(1, nearest(tokens * part / each)) for part, each in zip(parts, per_step, strict=True)
    ]
    if len(set(per_step)) == 1:
        steps[-1] = max(1, nearest(tokens / per_step[0]) - sum(steps[:-1]))
    return steps


def tokens_per_step(stage: Json) -> int:
    """Return the tokens of a step of a stage's content.

    Raises:
        UsageError: If it does not say.
    """
    found = stage["training"].get("batch"), stage["data"].get("sequence_length")
    if not all(type(each) is int and each > 0 for each in found):
        raise UsageError("base has no training.batch and data.sequence_length", HINT)
    if stage["training"].get("batch_ramp") is not None:
        raise UsageError("training.batch_ramp: a study counts arms in steps of one batch", HINT)
    return int(found[0] * found[1])


def flops_per_token(stage: Json) -> int:
    """Return the operations for a token of a stage's content.

    Raises:
        UsageError: For its model.
    """
    try:
        section = ModelSection.model_validate(stage["model"])
    except ValidationError as error:
        raise UsageError(problems(error.errors()), HINT, where="model") from None
    length = stage["data"]["sequence_length"]
    return training_flops(section.config(section.vocab_size or 1, length), length)


def _rate(stage: Json, steps: int, decay: float | None) -> Json:
    """Return the learning rate of a stage that falls over a part of it, or not at all.

    A style that the study names is left as it is.
    """
    rate: Json = stage["learning_rate"]
    if "style" in rate:
        return rate
    if decay is None:
        return {**rate, "style": "constant"}
    cooldown = max(1, nearest(Fraction(decay).limit_denominator(10**6) * steps))
    return {**rate, "style": "wsd", "cooldown_tokens": cooldown * tokens_per_step(stage)}


def words_of(arm: PlannedArm) -> str:
    """Return what an arm is, in words: the study's own, or made from its stages."""
    if arm.section.words is not None:
        return arm.section.words
    tokens = amount(arm.tokens)
    if len(arm.stages) == 1:
        return f"{arm.stages[0].stage.name} from scratch, {tokens} tokens"
    parts = " to ".join(
        f"{each.stage.name} ({100 * each.steps * each.stage.tokens_per_step / arm.tokens:.0f} %)"
        for each in arm.stages
    )
    growths = "; ".join(method_of(each) for _, each in pairwise(arm.stages))
    return f"{parts} of {tokens} tokens, {growths}"


def method_of(planned: PlannedStage) -> str:
    """Return how a stage grows, in words: ``mask``, or ``width by mask, depth by stack``."""
    if planned.growth is None or not planned.growth.methods:
        return "none"
    methods = {str(dimension): str(each) for dimension, each in planned.growth.methods.items()}
    if len(set(methods.values())) == 1:
        return next(iter(methods.values()))
    return ", ".join(f"{dimension} by {each}" for dimension, each in methods.items())
