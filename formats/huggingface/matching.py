"""The weights of a Hugging Face folder, held against the model that its ``config.json`` describes.

Every array of the model must be there in its shape, and every tensor must be one of them. Where the
two disagree, a single wrong field is mostly what did it: it is looked for, and named.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from flmgrow.errors import BadCheckpointError, FlmgrowError
from flmgrow.formats.huggingface.config import model_of, seen
from flmgrow.formats.huggingface.contents import CONFIG, HuggingFaceFolder
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.model_rows import LAYERS, N_LAYER, TIED
from flmgrow.formats.huggingface.fields.switch_rows import PICTURES
from flmgrow.formats.huggingface.safetensors_file import SafetensorsFile, StoredTensor
from flmgrow.formats.layout.placements import Layout, Placement, placements
from flmgrow.formats.pieces import DTYPES, Piece
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import logical_tensors
from flmgrow.text import Found, Setting, Text

WAYS_OUT = Text(
    f"config.json shares one table ({TIED.name}) beside a head of its own: transformers 5 "
    "computes with that head, which ",
    Setting("untie", True),
    " keeps; transformers 4 with the table, which ",
    Setting("untie", False),
    " keeps",
)
_DISAGREE = "config.json and the weights do not agree: copy both again, from one save"
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.([0-9]{1,6})\..*")
_OF_PICTURES = re.compile(r"(?:model\.)?language_model\.")
"""What names of the text model begin with in models that read pictures, too."""

_LAYERS = (LAYERS.name, N_LAYER.name)
_SAMPLE = 1 << 12


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """A piece that is one tensor of a safetensors file."""

    placement: Placement
    file: SafetensorsFile
    tensor: StoredTensor

    def __str__(self) -> str:
        return f"{self.file.file.path}: {self.tensor.name}"

    @property
    def dtype(self) -> str:
        """The dtype of the array, by torch's name."""
        return self.tensor.dtype

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the tensor's bytes from byte ``offset`` on."""
        self.file.read_into(self.tensor, offset, target)

    def checksum(self) -> int | None:
        """The format keeps no sums."""
        return None


def family_placements(
    family: Family, config: ModelConfig, sizes: Sizes, shared: bool = False
) -> list[Placement]:
    """Return every array of a model of ``family``.

    ``shared``: a copy of a tied embedding lies in the head's place.
    """
    layout = Layout(1, 1, 1, (config.layers,))
    tensors = logical_tensors(config)
    result = placements(family.rows, tensors, sizes, layout)
    if shared:
        row = next(row for row in family.rows if row.home is Home.LAST_COPY)
        table = next(p for p in result if p.parts == (tensors["embedding"],))
        result.append(replace(table, row=row, key=row.key))
    return result


def head_of(family: Family, contents: HuggingFaceFolder) -> str | None:
    """Return the name under which a head is stored, or None if there is none."""
    keys = [row.key for row in family.rows if row.home is Home.LAST_COPY]
    return next((key for key in keys if key in contents.tensors), None)


def find_pieces(
    contents: HuggingFaceFolder, family: Family, config: ModelConfig, sizes: Sizes, *, shared: bool
) -> list[TensorPiece]:
    """Return every array of the model, as it lies in the folder.

    ``shared``: the head that is stored is the tied table once more. One that a tied model has
    otherwise is passed over.

    Raises:
        BadCheckpointError: For an array that is missing or of another shape, and for a tensor that
            is none.
    """
    stored = dict(contents.tensors)
    bare = not any(name.startswith(family.prefix) for name in stored)
    if config.tied and not shared and (head := head_of(family, contents)) is not None:
        del stored[head]
    found = []
    for placement in family_placements(family, config, sizes, shared):
        key = placement.key.removeprefix(family.prefix) if bare else placement.key
        if key not in stored:
            raise _blamed(contents, family, config) or _missing(contents, key)
        file, tensor = stored.pop(key)
        piece = TensorPiece(replace(placement, key=key), file, tensor)
        if tensor.shape != placement.shape:
            raise _blamed(contents, family, config, tensor) or BadCheckpointError(
                Text(f"{piece}: shape ", Found(tensor.shape)), _DISAGREE, wanted=placement.shape
            )
        found.append(piece)
    for name, (file, _) in stored.items():
        if not family.buffers.fullmatch(name):
            raise _blamed(contents, family, config) or BadCheckpointError(
                f"no such parameter in the model that {CONFIG} describes",
                "flmgrow drops nothing in silence; this model has a part it does not know",
                where=(file.file.path, name),
            )
    return found


def _missing(contents: HuggingFaceFolder, key: str) -> BadCheckpointError:
    """Return the error of an array that is not stored."""
    where = (contents.folder, key)
    other = next((name for name in contents.tensors if _OF_PICTURES.match(name)), None)
    if other is None:
        return BadCheckpointError("not there", _DISAGREE, where=where)
    return BadCheckpointError(Text("not there, but ", Found(other)), PICTURES, where=where)


def check_tied_head(pieces: list[TensorPiece]) -> None:
    """Raise BadCheckpointError for a head beside a tied table that begins with other values.

    So it is found by every command, also where nobody compares all copies.
    """
    head = next((p for p in pieces if p.placement.row.home is Home.LAST_COPY), None)
    if head is None:
        return
    table = next(
        (p for p in pieces if p is not head and p.placement.parts == head.placement.parts), None
    )
    if table is not None and _begin(table) != _begin(head):
        raise BadCheckpointError(f"{head}: not equal to {table}", WAYS_OUT)


def _begin(piece: Piece) -> list[float]:
    """Return the first values of a piece."""
    dtype = DTYPES[piece.dtype]
    data = bytearray(min(prod(piece.placement.shape), _SAMPLE) * dtype.itemsize)
    piece.read_into(0, memoryview(data))
    values: list[float] = np.frombuffer(data, dtype).astype(np.float64).tolist()
    return values


# --- Which field is wrong


def _blamed(
    contents: HuggingFaceFolder,
    family: Family,
    config: ModelConfig,
    tensor: StoredTensor | None = None,
) -> BadCheckpointError | None:
    """Return the error that names the one field which disagrees with the weights, if there is one.

    ``tensor`` is one of another shape than wanted.
    """
    where = contents.folder / CONFIG
    fields = seen(family, contents.fields, contents.options)
    layers: dict[int, list[str]] = {}
    for name in contents.tensors:
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), []).append(name)
    count = len(layers)
    whole = set(layers) == set(range(count)) and len(set(map(len, layers.values()))) == 1
    for name in _LAYERS:
        if whole and fields.get(name) == config.layers != count:
            return BadCheckpointError(
                f"{name} is {config.layers}, but the weights have {count} layers (the "
                f"last has {layers[count - 1][0]})",
                _DISAGREE,
                where=where,
            )
    if tensor is None:
        return None
    for name, value in _other_sizes(fields, family, config, tensor):
        if _fits(contents, family, {**fields, name: value}):
            return BadCheckpointError(
                f"{name} is {fields[name]}, but {tensor.name} has shape {tensor.shape}, "
                f"as {value} would have it",
                _DISAGREE,
                where=where,
            )
    return None


def _other_sizes(
    fields: Mapping[str, object], family: Family, config: ModelConfig, tensor: StoredTensor
) -> Iterator[tuple[str, int]]:
    """Yield each field with the sizes that might explain a tensor's shape."""
    wanted = next(
        (p.shape for p in family_placements(family, config, config.sizes)
         if tensor.name.endswith(p.key.removeprefix(family.prefix))), ()
    )  # fmt: skip
    if len(wanted) != len(tensor.shape):
        return
    for name, value in fields.items():
        if name not in family.understood or not isinstance(value, int) or isinstance(value, bool):
            continue
        for size, found in zip(wanted, tensor.shape, strict=True):
            if size != found and value * found % size == 0 and value * found // size > 0:
                yield name, value * found // size


def _fits(contents: HuggingFaceFolder, family: Family, fields: Mapping[str, object]) -> bool:
    """Whether the model that ``fields`` describe has every tensor in its shape."""
    try:
        config = model_of(family, fields, CONFIG)
        sizes = {**config.sizes, Axis.VOCAB: config.vocab}
        wanted = family_placements(family, config, sizes)
    except FlmgrowError:
        return False
    stored = contents.tensors
    bare = not any(name.startswith(family.prefix) for name in stored)
    keys = {p.key.removeprefix(family.prefix) if bare else p.key: p.shape for p in wanted}
    return all(key in stored and stored[key][1].shape == shape for key, shape in keys.items())
