"""All that decides on a stage is known before its model is built, and is checked then.

The stage file says some of it, the checkpoint the rest, and the corpora must fit both.
"""

import math
from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.formats.layout import Layout
from flmgrow.model.config import ModelConfig
from flmgrow.trainer import cpu
from flmgrow.trainer.data import Batching
from flmgrow.trainer.loading import Begin, check_model
from flmgrow.trainer.stage import StageFile, layout_of
from flmgrow.trainer.stage_data import StageData, open_data

cpu.install()

from megatron.core import parallel_state  # noqa: E402


@dataclass(frozen=True, eq=False)
class Setting:
    """All that does not change while a stage runs."""

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    data: StageData
    begin: Begin

    @property
    def last(self) -> int:
        """The iteration at which the stage ends."""
        return self.begin.stage_begin + self.stage.steps

    @property
    def batching(self) -> Batching:
        """How this rank takes samples."""
        training = self.stage.training
        return Batching(
            training.batch,
            training.micro_batch,
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_data_parallel_rank(),
        )


def setting_of(stage: StageFile, begin: Begin) -> Setting:
    """Return the setting of ``stage``. Raises a FlmgrowError where its parts do not fit."""
    data = open_data(stage.data)
    if begin.checkpoint is None:
        config = stage.model.config(data.tokenizer.vocab_size, stage.data.sequence_length)
        multiple = stage.model.make_vocab_size_divisible_by * stage.layout.tp
        padded = math.ceil(config.vocab / multiple) * multiple
    else:
        check_model(stage.model, begin.checkpoint)
        config, padded = begin.checkpoint.config, begin.checkpoint.padded_vocab
    if data.tokenizer.vocab_size > config.vocab:
        raise UsageError(
            f"the tokenizer has {data.tokenizer.vocab_size} ids, the model {config.vocab}",
            "make vocab_size larger, or name another tokenizer",
        )
    if config.positions == "learned" and stage.data.sequence_length > config.max_positions:
        raise UsageError(
            f"sequence_length {stage.data.sequence_length}: the model has "
            f"{config.max_positions} positions"
        )
    layout = layout_of(stage, config, padded)
    return Setting(stage, config, layout, padded, data, begin)
