"""A stage file alone, as the only stage of a schedule: what is asked of one can be asked of it."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import padded_size
from flmgrow.stages.growth_section import WORDS
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.schedule import read_schedule
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.trainer.stage.file import layout_of, stage_of
from flmgrow.trainer.stage.keys import in_keys, told_of


def read_stages(path: Path) -> list[PlannedStage]:
    """Return the stages of a schedule file, or the one of a stage file.

    Raises:
        UsageError: As ``read_schedule`` does, and for a stage that does not say its vocabulary.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or "stages" in data or not {"model", "training"} <= data.keys():
        return read_schedule(path)
    stage = stage_of(data, path)
    vocabulary = stage.model.vocab_size
    if vocabulary is None:
        raise UsageError(
            "model.vocab_size: is not given",
            "say it: neither the data nor a checkpoint is read here",
            where=path,
        )
    with told_of(path):
        with in_keys("model", WORDS):
            config = stage.model.config(vocabulary, stage.data.sequence_length)
        padded = padded_size(vocabulary, stage.model.make_vocab_size_divisible_by, stage.layout.tp)
        with in_keys("layout", WORDS):
            layout = layout_of(stage, config, padded)
        planned = PlannedStage(stage, config, layout, padded, 0, stage.steps, "", fresh=None)
        _ = planned.frozen  # what it names must be there
    return [planned]
