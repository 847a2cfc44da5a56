"""The parts of a stage file that say what it begins with, and where its checkpoints lie."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flmgrow.trainer.stage.section import MOST, Count, FilePath, Section


class CheckpointSection(Section):
    """Where checkpoints lie, and what the stage begins with.

    The stage goes on from the newest checkpoint in ``folder``; if there is none, it begins with
    ``load`` (a checkpoint of any format and layout); without that, with fresh weights. ``every``
    counts steps; ``keep`` is how many are kept (None: all). ``begin`` says whether ``load`` gives
    all that it has, or weights only, as it always is of a Hugging Face folder. ``change_at`` is an
    iteration from whose checkpoint on settings hold that the stage did not begin with.
    ``ignore_arguments`` and ``ignore_fields`` (of a ``config.json``) name what is vouched for
    though flmgrow does not know it, or are patterns; ``set_arguments`` (``num_layers=28``) stand in
    the place of missing or wrong ones, over those that ``args_from`` says: a file beside the
    weights, or another checkpoint of the same model. ``true_vocab_size`` are the real rows of
    ``load`` where its files do not say. ``untie`` says whether a Hugging Face model with a shared
    table keeps the head that is stored beside it. ``other_positions`` lets the stage have another
    ``model.rotary`` or ``model.max_position_embeddings`` than ``load``: another function.
    """

    folder: FilePath = Path("checkpoints")
    load: FilePath | None = None
    begin: Literal["anew", "continue"] | None = None
    change_at: Annotated[int, Field(ge=0, le=MOST)] | None = None
    ignore_arguments: list[str] = Field(default_factory=list)
    ignore_fields: list[str] = Field(default_factory=list)
    set_arguments: list[str] = Field(default_factory=list)
    args_from: FilePath | None = None
    true_vocab_size: Count | None = None
    untie: bool | None = None
    other_positions: bool = False
    every: Count | None = None
    keep: Count | None = None
    format: Literal["megatron", "torch_dist"] = "torch_dist"


class GrowthSection(Section):
    """How the model comes about in memory: that of another stage grows, and this one goes on.

    ``after`` is the other stage's file. Its model grows when it ends, or before, at iteration
    ``at``; ``to`` is a file that says into what, as ``flmgrow expand --to`` takes it. If the run
    diverges soon after (:meth:`GuardSection.watches_growth`), the growth is taken back, and the run
    stops or goes on ``ungrown``: in this stage, with the old model.
    """

    after: FilePath
    to: FilePath
    at: Annotated[int, Field(ge=1, le=MOST)] | None = None
    if_diverged: Literal["stop", "ungrown"] = "stop"
