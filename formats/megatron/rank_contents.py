"""What the ranks of a source hold, for those who write a Megatron checkpoint from it.

A checkpoint of Megatron's says it itself. A model from elsewhere has no arguments, and no order of
modules: what one rank of Megatron's would hold of it is made up here, when somebody writes it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol, runtime_checkable

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.megatron.arguments.new import IMPLEMENTATIONS, new_arguments
from flmgrow.formats.megatron.folders import RankKey
from flmgrow.formats.megatron.new_model import new_content


@runtime_checkable
class RankContents(Protocol):
    """The files of a checkpoint that consists of Megatron's ranks."""

    def content(self, rank: RankKey) -> Mapping[object, object]:
        """Return what a rank of the checkpoint's layout saved.

        That is: args, iteration, and so on, and a state dict per model chunk, in the order of its
        modules. Tensors in it that are pieces need not be there, but their keys are.
        """


def rank_content(source: Checkpoint, rank: RankKey) -> Mapping[object, object]:
    """Return what a rank of ``source`` holds; of a model from elsewhere, what its one would."""
    if isinstance(source.contents, RankContents):
        return source.contents.content(rank)
    return _made_content(source)


@lru_cache(maxsize=1)  # every rank that is written asks for it
def _made_content(source: Checkpoint) -> Mapping[object, object]:
    implementation = IMPLEMENTATIONS[source.fused]
    arguments = new_arguments(source.config, source.padded_vocab, source.dtype, implementation)
    return new_content(arguments, source.config, source.padded_vocab, source.fused)
