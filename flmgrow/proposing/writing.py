"""A proposed schedule as a file that ``flmgrow run`` takes."""

from collections.abc import Sequence

from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount
from flmgrow.proposing.candidates import Candidate
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.model import SIZES
from flmgrow.trainer.stage.training import LayoutSection

COOLDOWN = 0.2
"""Of the last stage's tokens, in which the learning rate falls."""

RAMP, LONGEST_RAMP = 0.1, 1000
"""Steps over which masks open: a share of the stage's, and at most so many."""


def schedule_of(stage: StageFile, candidate: Candidate, layouts: Sequence[LayoutSection]) -> Json:
    """Return the content of a schedule file: stages in order, the rate falling in the last one."""
    plain: Json = stage.model_dump(mode="json", exclude_none=True)
    for section, names in _OF_STAGES.items():
        plain[section] = {k: v for k, v in plain[section].items() if k not in names}
    plain = {k: v for k, v in plain.items() if k not in ("name", "layout", "learning_rate")}
    plain["model"] = {**plain["model"], **_sizes(candidate.models[0])}
    last = len(candidate.models) - 1
    stages = []
    for number, (model, tokens, layout) in enumerate(
        zip(candidate.models, candidate.tokens, layouts, strict=True)
    ):
        steps = max(1, round(tokens / stage.tokens_per_step))
        own: Json = {
            "name": amount(parameter_count(model)).replace(",", "").lower(),
            "layout": layout.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            "training": {"steps": steps},
            "learning_rate": _rate(stage, steps, first=number == 0, last=number == last),
        }
        if number:
            own["model"] = _changed(candidate.models[number - 1], model)
            ramp = max(1, min(LONGEST_RAMP, round(RAMP * steps)))
            own["growth"] = {"method": "mask", "ramp_steps": ramp}
        stages.append(own)
    return {**plain, "stages": stages}


_OF_STAGES = {
    "training": ("steps", "tokens"),
    "checkpoint": ("folder", "load", "begin", "change_at", "args_from"),
    "log": ("metrics", "tensorboard"),
}
"""What each stage has of its own, or the run's folder decides."""


def _rate(stage: StageFile, steps: int, *, first: bool, last: bool) -> Json:
    rate = stage.learning_rate
    found: Json = {"peak": rate.peak}
    if first:
        key = "warmup_share" if rate.warmup_share else "warmup_samples"
        found[key] = getattr(rate, key)
    if not last:
        return {**found, "style": "constant"}
    cooldown = max(1, round(COOLDOWN * steps)) * stage.tokens_per_step
    return {**found, "floor": rate.floor, "style": "wsd", "cooldown_tokens": cooldown}


def _sizes(model: ModelConfig) -> Json:
    return {key: getattr(model, field) for key, field in SIZES.items()}


def _changed(before: ModelConfig, model: ModelConfig) -> Json:
    old = _sizes(before)
    return {key: value for key, value in _sizes(model).items() if value != old[key]}
