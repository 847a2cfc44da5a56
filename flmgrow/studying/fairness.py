"""What the arms of a study have in common beside what they are to be compared by, and what not.

A study is fair by construction where it says nothing else: data, validation, learning rates by size
and their decay are made alike for all arms. It may say otherwise, and a report must then not claim
that it did not. So what was held equal is found in the stages as they are trained, and not in what
the study's author meant.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from flmgrow.model.wording import value_text
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted
from flmgrow.studying.arms import PlannedArm
from flmgrow.studying.measuring import is_decayed
from flmgrow.studying.outcomes import Finding
from flmgrow.studying.rates import ChosenRate
from flmgrow.trainer.stage.data import HELD_OUT
from flmgrow.trainer.stage.file import StageFile

_VALIDATION = (
    "data.validation_share",
    "data.validation_sets",
    "log.validation_samples",
    "log.validation_batches",
    "log.validation_set",
)
_KINDS: Mapping[str, str] = {
    "data.": "data",
    "training.seed": "",  # the study's own
    "training.steps": "",
    "training.tokens": "",
    "training.": "training",
    "optimizer.": "optimizer",
    "learning_rate.floor": "learning rate",
}
"""The settings in which arms must agree, by the beginning of their keys; the first that fits."""

CLOSE = 0.01
"""Shares of decay that differ by no more are one."""


def held_and_findings(
    arms: Sequence[PlannedArm], rates: Sequence[ChosenRate]
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """Return what was equal for all arms, in sentences, and what was not."""
    findings = [
        *_differing(arms),
        *_rates(arms, rates),
        *_decay(arms),
        *_decay_shares(arms),
        *_masks(arms),
    ]
    broken = {each.what for each in findings}
    held = [sentence for what, sentence in _held(arms, rates).items() if what not in broken]
    return tuple(held), tuple(findings)


def _held(arms: Sequence[PlannedArm], rates: Sequence[ChosenRate]) -> dict[str, str]:
    seeds = sorted({arm.seed for arm in arms})
    stage = arms[0].stages[0].stage
    log, main = stage.log, stage.validation_set
    text = "which none is trained on" if main == HELD_OUT else f"of the set {main}"
    count = "the same samples" if log.validation_samples is None else (
        f"the same {log.validation_samples:,} samples")  # fmt: skip
    chosen = ", ".join(f"{each.size} {value_text(each.peak)}" for each in rates)
    how = rates[0].source if rates else ""
    return {
        "data": "All arms of a seed read the same samples in the same order, each once, from the "
        "first one on.",
        "validation": f"All arms of a seed are validated on {count}, {text}.",
        "training": "All arms have the same batch, precision and initialisation.",
        "optimizer": "All arms have the same optimizer settings.",
        "learning rate": f"Each size has its own peak of the learning rate ({chosen}): {how}.",
        "decay": "In every arm the learning rate has fallen to its floor where the arm ends.",
        "decay's length": "It falls over the same part of the tokens of every arm.",
        "masks": "All masks are open where an arm ends.",
        "seeds": f"Every arm is trained with the seeds {', '.join(map(str, seeds))}, which decide "
        "on fresh weights, on the order of samples, and on what is fresh in a growth.",
    }


def _settings(stage: StageFile) -> dict[str, object]:
    plain: Json = stage.model_dump(mode="json", exclude={"name", "model", "checkpoint"})
    return dotted(plain)


def _kind(key: str) -> str:
    if key in _VALIDATION:
        return "validation"
    return next((kind for begin, kind in _KINDS.items() if key.startswith(begin)), "")


def _differing(arms: Sequence[PlannedArm]) -> Iterator[Finding]:
    """Yield the settings in which an arm differs from what most stages have."""
    for seed in sorted({arm.seed for arm in arms})[:1]:
        own = {arm.name: [_settings(each.stage) for each in arm.stages]
               for arm in arms if arm.seed == seed}  # fmt: skip
        keys = sorted({key for stages in own.values() for stage in stages for key in stage})
        for key in keys:
            kind = _kind(key)
            values = [str(stage.get(key)) for stages in own.values() for stage in stages]
            usual = max(sorted(set(values)), key=values.count)
            others = {
                name: sorted({str(stage.get(key)) for stage in stages} - {usual})
                for name, stages in own.items()
            }
            differing = tuple(name for name, found in others.items() if found)
            if kind and differing:
                found = ", ".join(sorted({each for name in differing for each in others[name]}))
                yield Finding(kind, differing, f"{key} is {found}; elsewhere {usual}")


def _rates(arms: Sequence[PlannedArm], rates: Sequence[ChosenRate]) -> Iterator[Finding]:
    chosen = {each.size: each for each in rates}
    for arm in _one_of_each(arms):
        for section, planned in zip(arm.section.stages, arm.stages, strict=True):
            peak, known = planned.stage.learning_rate.peak, chosen[section.size].peak
            if peak != known:
                detail = (
                    f"the peak of {section.size} is {value_text(peak)} by hand, and "
                    f"{value_text(known)} elsewhere"
                )
                yield Finding("learning rate", (arm.name,), detail)
    for each in rates:
        names = tuple(arm.name for arm in _one_of_each(arms)
                      if each.size in [stage.size for stage in arm.section.stages])  # fmt: skip
        if not each.grid:
            detail = (
                f"the peak of {each.size}, {value_text(each.peak)}, was not searched by this "
                f"study: {each.source}"
            )
            yield Finding("learning rate", names, detail)
        elif each.edge:
            detail = (
                f"the best peak of {each.size}, {value_text(each.peak)}, is the {each.edge} that "
                "was tried: a better one may lie beyond"
            )
            yield Finding("learning rate", names, detail)


def _decay(arms: Sequence[PlannedArm]) -> Iterator[Finding]:
    names = tuple(arm.name for arm in _one_of_each(arms) if not is_decayed(arm.stages[-1].stage))
    if names:
        yield Finding("decay", names, "the learning rate has not fallen where the arm ends")


def _decay_shares(arms: Sequence[PlannedArm]) -> Iterator[Finding]:
    """Yield what part of its tokens an arm's rate falls over, where that is not the same."""
    shares = {arm.name: _decay_share(arm) for arm in _one_of_each(arms)}
    if max(shares.values()) - min(shares.values()) > CLOSE:
        detail = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        yield Finding("decay's length", tuple(shares), f"of an arm's tokens: {detail}")


def _decay_share(arm: PlannedArm) -> float:
    stage = arm.stages[-1].stage
    rate = stage.learning_rate
    if rate.style == "constant":
        return 0.0
    if rate.cooldown_tokens is not None:
        return float(Fraction(rate.cooldown_tokens, arm.tokens))
    return float(Fraction((stage.steps - stage.warmup_steps) * stage.tokens_per_step, arm.tokens))


def _masks(arms: Sequence[PlannedArm]) -> Iterator[Finding]:
    for arm in _one_of_each(arms):
        if left := arm.stages[-1].unfinished:
            detail = ", ".join(f"{name} at {mask.value:.3g}" for name, mask in left.items())
            yield Finding("masks", (arm.name,), f"not open where it ends: {detail}")


def _one_of_each(arms: Sequence[PlannedArm]) -> list[PlannedArm]:
    """Return each arm once: what is said of fairness does not depend on the seed."""
    return [arm for arm in arms if arm.seed == arms[0].seed]
