"""A model that lies in no Megatron file yet, as Megatron's files would describe it.

What is written takes its arguments and the order of its modules from a source. An imported model
and one that is only in a trainer's memory have none, so this makes one up: the content of the rank
that would have held all of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flmgrow.formats.checkpoint import Checkpoint, FileSums
from flmgrow.formats.companions import NO_COMPANIONS, Companions
from flmgrow.formats.layout.placements import Layout, placements
from flmgrow.formats.megatron.arguments.vocabulary_rows import MULTIPLE
from flmgrow.formats.megatron.module_order import module_keys
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.torch_file.objects import make_namespace
from flmgrow.formats.torch_file.values import OrderedMap
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import logical_tensors

_LINEAR = ("linear_proj", "linear_qkv", "linear_fc1", "linear_fc2", "output_layer")


def new_content(
    arguments: Mapping[str, object], config: ModelConfig, padded_vocab: int, fused: bool
) -> dict[object, object]:
    """Return what one rank of Megatron's would save, with the keys of its modules in order."""
    sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
    own = placements(ROWS, logical_tensors(config), sizes, Layout(1, 1, 1, (config.layers,)), fused)
    model = OrderedMap()
    for key in module_keys([placement.key for placement in own]):
        model[key] = None
        module = key.rpartition(".")[0]
        if module.endswith(_LINEAR):
            model[f"{module}._extra_state"] = None
    model.setdefault("output_layer._extra_state", None)
    return {
        "args": make_namespace(dict(arguments)),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "model": model,
        "num_floating_point_operations_so_far": 0,
    }


@dataclass(frozen=True, eq=False)
class NoFiles:
    """Contents that every rank has, and no file."""

    root: Mapping[object, object]
    nbytes: int = 0
    count: int = 0

    def content(self, rank: tuple[int, int]) -> Mapping[object, object]:
        """Return what a rank holds beside its pieces: the same for all."""
        return self.root

    def digest(self) -> str:
        """Return no digest: there are no bytes yet."""
        return ""

    def sums(self) -> Mapping[Path, FileSums]:
        """Return no sums."""
        return {}

    def verify(self, progress: Callable[[int], object]) -> tuple[str, ...]:
        """Return no kinds of sums."""
        return ()

    def check_unchanged(self) -> None:
        """Do nothing: what is in memory is the caller's."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


def new_model(
    name: str,
    config: ModelConfig,
    arguments: Mapping[str, object],
    padded_vocab: int,
    dtype: str,
    iteration: int,
    extra: Mapping[str, object],
    companions: Companions = NO_COMPANIONS,
) -> Checkpoint:
    """Return a model without files as a source to write from, under megatron-core's local names.

    ``extra`` is what ranks hold beside model and arguments, ``companions`` say how the model is
    spoken to. Its values cannot be read.
    """
    content = new_content(arguments, config, padded_vocab, fused=False)
    content.update({**extra, "iteration": iteration})
    multiple = MULTIPLE.get(arguments)
    assert isinstance(multiple, int)
    return Checkpoint(
        path=Path(name),
        folder=Path(name),
        iteration=iteration,
        config=config,
        layout=Layout(1, 1, 1, (config.layers,)),
        padded_vocab=padded_vocab,
        vocab_multiple=multiple,
        dtype=dtype,
        reader=LogicalReader(
            logical_tensors(config), {**config.sizes, Axis.VOCAB: padded_vocab}, ()
        ),
        contents=NoFiles(content),
        fused=False,
        carried=dict.fromkeys(extra, "of the trainer"),
        format="megatron",
        companions=companions,
    )
