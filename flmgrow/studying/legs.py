"""The legs of a study: what its arms have in common is trained once.

Five arms that begin with the same small model train it once for each seed; a model that is trained
for three lengths is trained for the longest only, and the shorter ones leave its way where their
learning rate begins to fall. So each arm is a path of legs: parts of stages with one model and one
shape of the learning rate. Legs with the same content, after the same legs, are one leg. Each is
trained from the checkpoint that the one before it saved, as it is or grown, and its content is all
that decides on its steps: so an arm's numbers are those that it would have alone.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from flmgrow.stages.past import CHECKPOINTS
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.trial_folder import in_its_folder
from flmgrow.storage.strict_json import Json
from flmgrow.studying.arms import PlannedArm
from flmgrow.trainer.stage.chain import START
from flmgrow.trainer.stage.file import StageFile

STABLE, FALLING, WHOLE = "stable", "falling", "whole"

_OF_A_LEG = ("steps", "tokens")
_OF_ITS_RATE = ("style", "decay_tokens", "cooldown_tokens", "cooldown")
_SHOWN = 8
"""Hexadecimal digits of a leg's content in the name of its folder."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a stage, from step ``begin`` to step ``end`` of it, in one shape of the rate."""

    planned: PlannedStage
    shape: str
    begin: int
    end: int

    @property
    def grows(self) -> bool:
        """Whether it begins with a growth."""
        return self.begin == 0 and self.planned.target is not None

    @property
    def content(self) -> Json:
        """What decides on its steps, but for how many they are where they may be fewer."""
        # Without what is as ever: so a later flmgrow that knows more settings finds the same legs.
        stage: Json = self.planned.stage.model_dump(
            mode="json", exclude={"name", "checkpoint", "log"}, exclude_defaults=True
        )
        free = (*_OF_A_LEG, *_OF_ITS_RATE) if self.shape == STABLE else _OF_A_LEG
        for section in ("training", "learning_rate"):
            known = stage.get(section, {})
            stage[section] = {key: value for key, value in known.items() if key not in free}
        target = self.planned.target if self.grows else None
        steps = None if self.shape == STABLE else self.end - self.begin
        growth = None if target is None else target.model_dump(mode="json", exclude_defaults=True)
        return {"stage": stage, "growth": growth, "shape": self.shape, "steps": steps}

    @property
    def digest(self) -> str:
        """The content as a number."""
        text = json.dumps(self.content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def parts_of(planned: PlannedStage) -> Iterator[Part]:
    """Yield the parts of a stage: one, or two where its rate is stable before it falls."""
    stage = planned.stage
    rate, steps = stage.learning_rate, planned.steps
    falling = round((rate.cooldown_tokens or 0) / stage.tokens_per_step)
    begin = steps - falling
    whole = rate.style not in ("constant", "wsd") or rate.decay_tokens is not None
    if whole or begin < max(1, stage.warmup_steps):  # nobody turns off in a warm-up
        yield Part(planned, WHOLE, 0, steps)
        return
    yield Part(planned, STABLE, 0, begin)
    if falling:
        yield Part(planned, FALLING, begin, steps)


@dataclass(frozen=True, eq=False)
class Leg:
    """A leg: the part of a stage that it is, after which other, and what begins with it.

    ``planned`` is that part as a stage of its own, named and kept as the leg is.
    """

    part: Part
    seed: int
    before: "Leg | None"
    planned: PlannedStage
    digest: str
    after: list["Leg"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the leg, and of its folder."""
        return self.planned.folder

    @property
    def path(self) -> tuple["Leg", ...]:
        """The legs from the first one to this one."""
        return (*(self.before.path if self.before else ()), self)

    @property
    def cost(self) -> float:
        """The operations of its steps."""
        return float(self.planned.flops)

    @property
    def farthest(self) -> float:
        """The operations until the end of the longest way that leads on from it, its own among
        them.
        """
        return self.cost + max((leg.farthest for leg in self.after), default=0.0)


@dataclass(frozen=True, eq=False)
class Legs:
    """All legs of a study, each behind the one that it begins with, and each arm's last one."""

    every: Sequence[Leg]
    last: dict[tuple[str, int], Leg]


def legs_of(arms: Sequence[PlannedArm]) -> Legs:
    """Return the legs of arms."""
    every: list[Leg] = []
    last: dict[tuple[str, int], Leg] = {}
    for seed in sorted({arm.seed for arm in arms}):
        ways = [
            (arm, [part for planned in arm.stages for part in parts_of(planned)])
            for arm in arms
            if arm.seed == seed
        ]
        _grow(seed, None, ways, every, last)
    return Legs(every, last)


_Way = tuple[PlannedArm, list[Part]]


def _grow(
    seed: int, before: Leg | None, ways: Sequence[_Way], every: list[Leg],
    last: dict[tuple[str, int], Leg],
) -> None:  # fmt: skip
    """Add the legs of all ways that go on behind a leg."""
    for arm, parts in ways:
        if not parts:
            assert before is not None
            last[arm.name, seed] = before
    going = sorted((way for way in ways if way[1]), key=_first_digest)
    for _, alike in groupby(going, key=_first_digest):
        here, left = before, list(alike)
        while left:
            # They go together until the first of them turns off.
            end = min(parts[0].end for _, parts in left)
            part = left[0][1][0]
            begun = part.begin if here is before else here.part.end  # type: ignore[union-attr]
            here = _leg(replace(part, begin=begun, end=end), seed, here)
            every.append(here)
            turning = [(arm, parts[1:]) for arm, parts in left if parts[0].end == end]
            _grow(seed, here, turning, every, last)
            left = [way for way in left if way[1][0].end > end]


def _first_digest(way: _Way) -> str:
    return way[1][0].digest


def _leg(part: Part, seed: int, before: Leg | None) -> Leg:
    steps = part.end - part.begin
    text = f"{before.digest if before else seed} {part.digest} {part.begin} {part.end}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    first = part.planned.first + part.begin
    end = part.planned.first + part.end
    name = f"seed{seed}-{part.planned.stage.name}-{end:06d}-{digest[:_SHOWN]}"
    stage = _stage_of(part, before, name, steps)
    planned = replace(
        part.planned, stage=stage, first=first, steps=steps, folder=name,
        target=part.planned.target if part.grows else None,
    )  # fmt: skip
    leg = Leg(part, seed, before, planned, digest)
    if before is not None:
        before.after.append(leg)
    return leg


def _stage_of(part: Part, before: Leg | None, name: str, steps: int) -> StageFile:
    """Return a leg's stage: so many steps, and its rate as it goes on from where it was."""
    stage = part.planned.stage
    rate = stage.learning_rate
    if part.shape == STABLE:
        rate = rate.model_copy(update={"style": "constant", "cooldown_tokens": None})
    elif part.shape == FALLING:
        rate = rate.model_copy(update={"cooldown_tokens": steps * stage.tokens_per_step})
    warmup = 0 if part.begin else stage.warmup_samples
    rate = rate.model_copy(update={"warmup_samples": warmup, "warmup_share": 0.0})
    training = stage.training.model_copy(update={"steps": steps, "tokens": None})
    load = None
    if part.grows:
        load = Path(START)
    elif before is not None:
        load = Path("..", before.name, CHECKPOINTS)
    log = stage.log.model_copy(update={"validation_first": part.grows})
    own = {"name": name, "training": training, "learning_rate": rate, "log": log}
    return in_its_folder(stage.model_copy(update=own), load)
