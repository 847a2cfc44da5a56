"""The model and layout that a checkpoint's arguments describe, before its arrays are looked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.fields import ArgumentReader, shown
from flmgrow.formats.layout.placements import Layout, Placement, placements
from flmgrow.formats.megatron.arguments.classes import judge, notes_of
from flmgrow.formats.megatron.arguments.model import read_config
from flmgrow.formats.megatron.arguments.pipeline import read_layout
from flmgrow.formats.megatron.arguments.run_rows import DTYPE
from flmgrow.formats.megatron.arguments.shapes import StoredShapes, check_shapes
from flmgrow.formats.megatron.arguments.vocabulary_rows import (
    MULTIPLE,
    PADDED_VOCAB,
    vocabulary_notes,
)
from flmgrow.formats.megatron.folders import ITERATION
from flmgrow.formats.pieces import Piece
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.torch_file.values import Global
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.text import Pass, Text

_MAIN = "float32"
_HALF = (Global("torch", "bfloat16"), Global("torch", "float16"))


@contextmanager
def _blaming(where: str) -> Iterator[None]:
    """What is wrong with a model or layout inside the block is the file's fault, not the user's."""
    try:
        yield
    except UsageError as error:
        raise BadCheckpointError.of(error).at(where) from None


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model as it is stored; ``where`` names the file that describes it.

    ``notes`` are what a user should know of the arguments.
    """

    where: str
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    vocab_multiple: int
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[Axis, int]:
        """The sizes of every axis, the vocabulary with its padding."""
        return {**self.config.sizes, Axis.VOCAB: self.padded_vocab}

    @property
    def tensors(self) -> dict[str, LogicalTensor]:
        """The model's logical tensors by name."""
        return logical_tensors(self.config)

    def placements(self, fused: bool) -> list[Placement]:
        """Return every array that its ranks hold."""
        with _blaming(self.where):
            return placements(ROWS, self.tensors, self.sizes, self.layout, fused)


def stored_model(
    arguments: Mapping[str, object],
    where: str,
    options: ReadOptions,
    shapes: StoredShapes | None = None,
) -> StoredModel:
    """Return the model that ``arguments``, found in file ``where``, describe.

    ``shapes`` are those of all its arrays, None where they are not known to be whole.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
        UsageError: For options that contradict them.
    """
    reader = ArgumentReader(arguments, where)
    rows = None if shapes is None else shapes.rows
    padded = PADDED_VOCAB.read(reader, rows)
    ignored = options.ignored_arguments
    notes = notes_of(arguments, where, ignored, options.look_only)
    if options.look_only:
        ignored = (*ignored, *judge(arguments).doubtful)
    with _blaming(where):
        config = read_config(arguments, where, padded, ignored)
    if shapes is not None:
        check_shapes(shapes, config, padded, arguments, where)
    config = replace(config, vocab=options.real_rows(config.vocab, padded))
    notes = (*notes, *vocabulary_notes(arguments, config.vocab))
    layout = read_layout(arguments, config.layers, where)
    if padded % layout.tp:
        name = PADDED_VOCAB.name
        raise BadCheckpointError(f"args.{name}: {padded} rows on TP{layout.tp}", where=where)
    multiple = MULTIPLE.read(reader)
    return StoredModel(where, config, layout, padded, multiple, notes)


def weights_dtype(arguments: Mapping[str, object], reader: LogicalReader) -> str:
    """Return the one dtype of all weights.

    Raises:
        BadCheckpointError: If there are several.
    """
    first = reader.arrays[0]
    for array in reader.arrays:
        if array.dtype != first.dtype:
            raise BadCheckpointError(
                f"{array}: dtype {array.dtype}, {first.placement.key} is {first.dtype}",
                "weights of several dtypes are not supported",
            )
    declared = DTYPE.get(arguments)
    known = isinstance(declared, Global) and declared.module == "torch"
    if isinstance(declared, Global) and known and declared.name != first.dtype:
        raise BadCheckpointError(
            f"{first}: dtype {first.dtype}, args.{DTYPE.name} says {declared.name}",
            Text(
                "the args and the weights do not agree; if the weights are right, ",
                Pass("set_arguments", {DTYPE.name: f"torch.{first.dtype}"}),
            ),
        )
    return first.dtype


def main_weights_dtype(arguments: Mapping[str, object], pieces: Sequence[Piece]) -> str | None:
    """Return the dtype that a model computes in where ``pieces`` are float32 main weights of it;
    None where they are the weights that it computes with.
    """
    declared = DTYPE.get(arguments)
    if not isinstance(declared, Global) or declared not in _HALF:
        return None
    return declared.name if all(piece.dtype == _MAIN for piece in pieces) else None


def main_weights_note(dtype: str) -> str:
    """Return what is to be told of float32 main weights that are read as ``dtype``."""
    return Text(
        f"weights are stored as the optimizer's, in {_MAIN}; they are read as {dtype}, which the "
        "run computes in. To read them as they are, ",
        Pass("set_arguments", {DTYPE.name: f"torch.{_MAIN}"}),
    )


def iteration_number(content: Mapping[object, object], where: str, folder_name: str) -> int | None:
    """Return the iteration a checkpoint is of; None for a release.

    ``content`` is what file ``where`` holds. Trainers believe the file, people and the tracker the
    folder's name: BadCheckpointError is raised if they differ.
    """
    number = content.get("iteration")
    named = ITERATION.fullmatch(folder_name)
    if folder_name == "release":
        return None
    if named is None:
        return number if isinstance(number, int) else None
    if number is not None and number != int(named[1]):
        raise BadCheckpointError(
            f"iteration is {shown(number)}, its folder is {folder_name}",
            "a folder was renamed, or files were mixed up; give it the name of the iteration that "
            "its files say",
            where=where,
        )
    return int(named[1])
