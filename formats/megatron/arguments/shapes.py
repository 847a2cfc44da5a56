"""What the stored arrays show of a model by their names and shapes alone, held against its
arguments.

Arguments can be wrong where weights are sound: a run that built 28 of 30 layers, a flag that was
flipped by hand. Whatever the arrays contradict is named, all of it at once, with the values that
would do. Where arguments are missing, the arrays give what they can.

Not everything can be seen: neither the number of heads (only heads times their size), nor how
positions are rotated, the epsilon of norms, or which function a plain activation is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments import model_rows
from flmgrow.formats.megatron.arguments.row import ModelArgument
from flmgrow.formats.megatron.arguments.vocabulary_rows import PADDED_VOCAB
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.config import ModelConfig
from flmgrow.text import Found, Pass, Text, Wanted

ArrayShape = tuple[int, ...]

_LAYERS = "decoder.layers."
_NUMBERED = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.+)", re.DOTALL)
_TABLE = "embedding.word_embeddings.weight"
_POSITIONS = "embedding.position_embeddings.weight"
_HEAD = "output_layer.weight"
_FINAL_BIAS = "decoder.final_layernorm.bias"
_QKV = f"{_LAYERS}self_attention.linear_qkv"
_PROJ = f"{_LAYERS}self_attention.linear_proj"
_QUERY_NORM = f"{_LAYERS}self_attention.q_layernorm.weight"
_SHOWN: tuple[ModelArgument[Any], ...] = (
    model_rows.LAYERS, model_rows.HIDDEN, model_rows.FFN, PADDED_VOCAB, model_rows.SWIGLU,
    model_rows.NORM, model_rows.LINEAR_BIAS, model_rows.QK_NORM, model_rows.UNTIED,
    model_rows.MAX_POSITIONS, model_rows.POSITIONS,
)  # fmt: skip
"""What arrays may show to be wrong, one by one."""

_UP, _DOWN = f"{_LAYERS}mlp.linear_fc1", f"{_LAYERS}mlp.linear_fc2"


def _split_dims() -> dict[str, int]:
    """Return, per key without its layer, the dimension that tensor ranks split."""
    rows = [row for row in ROWS if row.shard is not None]
    return {row.key.replace("{layer}.", ""): int(row.shard in row.columns) for row in rows}


@dataclass(frozen=True)
class StoredShapes:
    """The whole arrays of a model by key, without the layer's number and for one layer.

    ``layers`` is None where that cannot be told. ``own_head``: a stored ``output_layer`` is no copy
    of the table. ``dtype`` is that of the table.
    """

    shapes: Mapping[str, ArrayShape] = field(default_factory=dict)
    layers: int | None = None
    own_head: bool = True
    dtype: str = "float32"

    def dim(self, key: str, place: int) -> int | None:
        """Return one size of an array, None if there is no such array."""
        shape = self.shapes.get(key, ())
        return shape[place] if place < len(shape) else None

    @property
    def rows(self) -> int | None:
        """The rows of the table, with padding."""
        return self.dim(_TABLE, 0)


class ShapeCollector:
    """Collects the arrays of one or more chunks of a model; ``tp`` is how many ranks share them.

    What contradicts itself (a layer left out, two shapes under one key) is not told of: whoever
    looks for every single array says it better. Nor is an array with another number of dimensions
    than its parameter has: its sizes are those of shards (``torch_dist/pieces.py``), or nobody's.
    """

    def __init__(self, tp: int = 1) -> None:
        self._tp = tp
        self._split = _split_dims()
        self._dims = {row.key.replace("{layer}.", ""): 1 + bool(row.columns) for row in ROWS}
        self._shapes: dict[str, ArrayShape] = {}
        self._odd: set[str] = set()
        self._layers: int | None = 0

    def add_chunk(self, arrays: Iterable[tuple[str, ArrayShape]], counts: bool = True) -> None:
        """Take the arrays of a chunk, their layers numbered from 0; ``counts`` its layers."""
        numbers = set()
        for name, part in arrays:
            match = _NUMBERED.fullmatch(name)
            if match:
                numbers.add(int(match[1]))
            self._add(_LAYERS + match[2] if match else name, part)
        if numbers != set(range(len(numbers))):
            self._layers = None
        elif counts and self._layers is not None:
            self._layers += len(numbers)

    def add_stacked(self, name: str, shape: ArrayShape) -> None:
        """Take a whole array with all layers in front."""
        self._add(name, shape[1:])
        if self._layers not in (0, shape[0]):
            self._layers = None
        elif self._layers == 0:
            self._layers = shape[0]

    def _add(self, key: str, part: ArrayShape) -> None:
        dim = self._split.get(key)
        whole = tuple(n * self._tp if place == dim else n for place, n in enumerate(part))
        apart = len(part) != self._dims.get(key, len(part))
        if self._shapes.setdefault(key, whole) != whole or apart:
            self._odd.add(key)

    def result(self, own_head: bool, dtype: str) -> StoredShapes:
        """Return what was collected."""
        shapes = {key: shape for key, shape in self._shapes.items() if key not in self._odd}
        return StoredShapes(shapes, self._layers or None, own_head, dtype)


def shown_arguments(stored: StoredShapes) -> dict[str, object]:
    """Return the arguments that arrays alone tell."""
    table, ffn, rows = (
        stored.dim(k, d) for k, d in ((_TABLE, 1), (f"{_DOWN}.weight", 1), (f"{_UP}.weight", 0))
    )
    found = {
        model_rows.LAYERS.name: stored.layers,
        model_rows.HIDDEN.name: table,
        model_rows.FFN.name: ffn,
        PADDED_VOCAB.name: stored.dim(_TABLE, 0),
        model_rows.SWIGLU.name: rows == 2 * ffn if rows and ffn else None,
        model_rows.NORM.name: "LayerNorm" if _FINAL_BIAS in stored.shapes else "RMSNorm",
        model_rows.LINEAR_BIAS.name: f"{_PROJ}.bias" in stored.shapes,
        model_rows.QKV_BIAS.name: f"{_QKV}.bias" in stored.shapes,
        model_rows.QK_NORM.name: _QUERY_NORM in stored.shapes,
    }
    if stored.own_head:
        found[model_rows.UNTIED.name] = _HEAD in stored.shapes
    if _POSITIONS in stored.shapes:
        found[model_rows.POSITIONS.name] = "learned_absolute"
        found[model_rows.MAX_POSITIONS.name] = stored.dim(_POSITIONS, 0)
    return {name: value for name, value in found.items() if value is not None}


def shown_heads(stored: StoredShapes, heads: int) -> dict[str, object]:
    """Return what the arrays tell of attention with ``heads`` query heads; nothing if they
    cannot be split so.
    """
    queries, keys = _attention_rows(stored)
    if not queries or not keys or queries % heads or keys % (queries // heads):
        return {}
    size = queries // heads
    groups = keys // size
    if heads % groups:
        return {}
    grouped = groups != heads
    return {
        model_rows.HEADS.name: heads,
        model_rows.HEAD_DIM.name: size,
        model_rows.GROUPED.name: grouped,
        model_rows.GROUPS.name: groups,
    }


def _attention_rows(stored: StoredShapes) -> tuple[int, int]:
    """Return the rows of all queries, and of all keys; 0 where they are not told."""
    queries, rows = stored.dim(f"{_PROJ}.weight", 1) or 0, stored.dim(f"{_QKV}.weight", 0) or 0
    return queries, max(0, rows - queries) // 2 if rows else 0


def check_shapes(
    stored: StoredShapes, config: ModelConfig, padded_vocab: int, arguments: Mapping[str, object],
    where: str,
) -> None:  # fmt: skip
    """Raise BadCheckpointError, naming file ``where``, if the arrays contradict ``config``."""
    said = {row.name: row.value(config) for row in _SHOWN} | {PADDED_VOCAB.name: padded_vocab}
    shown = shown_arguments(stored)
    wrong = {n: shown[n] for n in said if n in shown and shown[n] != said[n] and _told(stored, n)}
    linear = bool(wrong.get(model_rows.LINEAR_BIAS.name, config.linear_bias))
    biased = bool(shown[model_rows.QKV_BIAS.name])
    said_biased = bool(model_rows.QKV_BIAS.get(arguments))
    if not linear and biased != said_biased and _told(stored, model_rows.QKV_BIAS.name):
        wrong[model_rows.QKV_BIAS.name] = biased
    if (
        config.positions == "learned"
        and _TABLE in stored.shapes
        and _POSITIONS not in stored.shapes
    ):
        wrong[model_rows.POSITIONS.name] = None
    heads = _wrong_heads(stored, config, arguments)
    if not wrong and heads is None:
        return
    lines: list[str] = [
        Text(
            f"args.{n} is ",
            Found(said.get(n, arguments.get(n))),
            Wanted(f"{_wanted(value)}: {_seen(stored, n)}"),
        )
        for n, value in wrong.items()
    ]
    lines += [] if heads is None else [heads[0]]
    choices = {name: value for name, value in wrong.items() if value is not None}
    choices |= {} if heads is None else heads[1]
    raise BadCheckpointError(Text("; ").join(lines), _way_out(wrong, heads, choices), where=where)


def _wanted(value: object) -> object:
    return "rope or none" if value is None else value


_HEADS = (model_rows.HEADS.name, model_rows.HEAD_DIM.name, model_rows.GROUPS.name)
_Heads = tuple[str, dict[str, object]]


def _way_out(
    wrong: Mapping[str, object], heads: _Heads | None, choices: Mapping[str, object]
) -> Text:
    doubts = ["the args and the weights do not agree"]
    given = dict(choices)
    if wrong.get(model_rows.POSITIONS.name, "") is None:
        doubts.append("no array tells which kind of positions it is, rope or none")
        given[model_rows.POSITIONS.name] = "KIND"
    if heads is not None and not heads[1]:
        doubts.append("no array tells how heads, their size and their groups come to that")
        given |= dict.fromkeys(_HEADS, "N")
    doubt = f"{'; '.join(doubts)}; if the weights are right, "
    return Text(doubt, Pass("set_arguments", given))


def _told(stored: StoredShapes, name: str) -> bool:
    """Whether an array that must be there in any case is; without it, a missing one says
    nothing.
    """
    anchors = {
        model_rows.NORM.name: "decoder.final_layernorm.weight",
        model_rows.LINEAR_BIAS.name: f"{_PROJ}.weight",
        model_rows.QKV_BIAS.name: f"{_QKV}.weight",
        model_rows.QK_NORM.name: f"{_QKV}.weight",
        model_rows.UNTIED.name: _TABLE,
    }
    return anchors.get(name, _TABLE) in stored.shapes or name not in anchors


def _seen(stored: StoredShapes, name: str) -> str:
    """Say what the arrays show of an argument."""
    if name == model_rows.LAYERS.name:
        return f"{_LAYERS[:-1]}: {stored.layers} layers are stored"
    keys = {
        model_rows.HIDDEN.name: _TABLE,
        PADDED_VOCAB.name: _TABLE,
        model_rows.FFN.name: f"{_DOWN}.weight",
        model_rows.SWIGLU.name: f"{_UP}.weight",
        model_rows.NORM.name: _FINAL_BIAS,
        model_rows.LINEAR_BIAS.name: f"{_PROJ}.bias",
        model_rows.QKV_BIAS.name: f"{_QKV}.bias",
        model_rows.QK_NORM.name: _QUERY_NORM,
        model_rows.UNTIED.name: _HEAD,
        model_rows.MAX_POSITIONS.name: _POSITIONS,
        model_rows.POSITIONS.name: _POSITIONS,
    }
    key = keys[name]
    shape = stored.shapes.get(key)
    return f"{key} is not stored" if shape is None else f"{key} has shape {shape}"


def _wrong_heads(
    stored: StoredShapes, config: ModelConfig, arguments: Mapping[str, object]
) -> _Heads | None:
    """Return what is wrong with heads, their size and groups, and what would do if that is
    clear.
    """
    queries, keys = _attention_rows(stored)
    size, heads, groups = config.head_dim, config.heads, config.kv_groups
    own_size = stored.dim(_QUERY_NORM, 0)
    right_size = own_size in (None, size) or not config.qk_norm
    if not queries or not keys or ((queries, keys) == (heads * size, groups * size) and right_size):
        return None
    line = (
        f"args say {heads} heads of {size} in {groups} groups, {_PROJ}.weight has {queries} "
        f"columns for queries, {_QKV}.weight {keys} rows for keys"
    )
    options = []
    if queries != heads * size and model_rows.HEAD_DIM.get(arguments) is not None:
        options.append(shown_heads(stored, queries // size) if queries >= size else {})
    options.append(shown_heads(stored, heads))
    fitting = [one for one in options if one and own_size in (None, one[model_rows.HEAD_DIM.name])]
    if len(fitting) != 1:
        return line, {}
    said = {
        model_rows.HEADS.name: heads,
        model_rows.HEAD_DIM.name: size,
        model_rows.GROUPED.name: groups != heads,
        model_rows.GROUPS.name: groups,
    }
    return line, {n: value for n, value in fitting[0].items() if value != said[n]}
