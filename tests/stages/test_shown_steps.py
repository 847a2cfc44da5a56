"""What the documentation shows of runs is what they would say, as far as it is not measured."""

import math
import re
from pathlib import Path

import pytest
from repository import ROOT

from flmgrow.stages.schedule import read_schedule
from flmgrow.trainer.stage.file import StageFile, read_stage

_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STEP = re.compile(r"^(\w+) +(\d+)/(\d+)  loss .*  lr (\S+)  (?:.*?  (ffn .*))?", re.MULTILINE)


def rate_at(stage: StageFile, step: int) -> float:
    """The learning rate of a step, counted from the stage's first: of what was read before it."""
    rate, batch = stage.learning_rate, stage.training.batch
    tokens = stage.training.tokens or stage.steps * stage.tokens_per_step
    read, end = (step - 1) * batch, math.floor(tokens / stage.data.sequence_length + 0.5)
    if read < rate.warmup_samples:
        return rate.peak * read / rate.warmup_samples
    part = (read - rate.warmup_samples) / (end - rate.warmup_samples)
    return rate.floor + (rate.peak - rate.floor) * (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("page", ["README.md", "docs/guides/watch.md", "docs/guides/train.md"])
def test_shown_steps_follow_from_the_stage(page: str, tmp_path: Path) -> None:
    """Their numbers, learning rates and masks, as far as they are not measured."""
    if page.endswith("train.md"):
        path = tmp_path / "stage.yaml"
        path.write_text(
            _YAML.findall((ROOT / page).read_text(encoding="utf-8"))[0], encoding="utf-8"
        )
        stages, ramp = [read_stage(path)], 0
    else:
        stages = [planned.stage for planned in read_schedule(ROOT / "configs" / "tiny.yaml")]
        ramp = 30
    begins = dict(zip((stage.name for stage in stages), (0, 200, 280), strict=False))
    by_name = {stage.name: stage for stage in stages}
    shown = _STEP.findall((ROOT / page).read_text(encoding="utf-8"))
    assert shown
    for name, step, last, rate, masks in shown:
        stage, begin = by_name[name], begins[name]
        assert int(last) == begin + stage.steps
        assert rate == f"{rate_at(stage, int(step) - begin):.2e}"
        values = {float(word) for word in masks.split() if word[0].isdecimal()}
        assert not values or values == {round((int(step) - begin - 1) / ramp, 3)}
