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
from shlex import quote

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.config import ModelConfig

Shape = tuple[int, ...]

_LAYERS = "decoder.layers."
_NUMBERED = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.+)", re.DOTALL)
_TABLE = "embedding.word_embeddings.weight"
_POSITIONS = "embedding.position_embeddings.weight"
_HEAD = "output_layer.weight"
_FINAL_BIAS = "decoder.final_layernorm.bias"
_QKV = f"{_LAYERS}self_attention.linear_qkv"
_PROJ = f"{_LAYERS}self_attention.linear_proj"
_QUERY_NORM = f"{_LAYERS}self_attention.q_layernorm.weight"
_POSITION_NAMES = {"learned": "learned_absolute", "xpos": "rope"}
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

    shapes: Mapping[str, Shape] = field(default_factory=dict)
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
    than its parameter has: its sizes are those of shards (``torch_dist_pieces``), or nobody's.
    """

    def __init__(self, tp: int = 1) -> None:
        self._tp = tp
        self._split = _split_dims()
        self._dims = {row.key.replace("{layer}.", ""): 1 + bool(row.columns) for row in ROWS}
        self._shapes: dict[str, Shape] = {}
        self._odd: set[str] = set()
        self._layers: int | None = 0

    def add_chunk(self, arrays: Iterable[tuple[str, Shape]], counts: bool = True) -> None:
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

    def add_stacked(self, name: str, shape: Shape) -> None:
        """Take a whole array with all layers in front."""
        self._add(name, shape[1:])
        if self._layers not in (0, shape[0]):
            self._layers = None
        elif self._layers == 0:
            self._layers = shape[0]

    def _add(self, key: str, part: Shape) -> None:
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
        "num_layers": stored.layers,
        "hidden_size": table,
        "ffn_hidden_size": ffn,
        "padded_vocab_size": stored.dim(_TABLE, 0),
        "swiglu": rows == 2 * ffn if rows and ffn else None,
        "normalization": "LayerNorm" if _FINAL_BIAS in stored.shapes else "RMSNorm",
        "add_bias_linear": f"{_PROJ}.bias" in stored.shapes,
        "add_qkv_bias": f"{_QKV}.bias" in stored.shapes,
        "qk_layernorm": _QUERY_NORM in stored.shapes,
    }
    if stored.own_head:
        found["untie_embeddings_and_output_weights"] = _HEAD in stored.shapes
    if _POSITIONS in stored.shapes:
        found["position_embedding_type"] = "learned_absolute"
        found["max_position_embeddings"] = stored.dim(_POSITIONS, 0)
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
        "num_attention_heads": heads,
        "kv_channels": size,
        "group_query_attention": grouped,
        "num_query_groups": groups,
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
    said: dict[str, object] = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "padded_vocab_size": padded_vocab,
        "swiglu": config.gated,
        "normalization": "LayerNorm" if config.norm == "layernorm" else "RMSNorm",
        "add_bias_linear": config.linear_bias,
        "qk_layernorm": config.qk_norm,
        "untie_embeddings_and_output_weights": not config.tied,
        "max_position_embeddings": config.max_positions,
        "position_embedding_type": _POSITION_NAMES.get(config.positions, config.positions),
    }
    shown = shown_arguments(stored)
    wrong = {n: shown[n] for n in said if n in shown and shown[n] != said[n] and _told(stored, n)}
    linear = bool(wrong.get("add_bias_linear", config.linear_bias))
    biased = bool(shown["add_qkv_bias"])
    if not linear and biased != bool(arguments.get("add_qkv_bias")) and _told(stored, "add_qkv"):
        wrong["add_qkv_bias"] = biased
    if (
        config.positions == "learned"
        and _TABLE in stored.shapes
        and _POSITIONS not in stored.shapes
    ):
        wrong["position_embedding_type"] = None
    heads = _wrong_heads(stored, config, arguments)
    if not wrong and heads is None:
        return
    lines = [
        f"args.{n} is {said.get(n, arguments.get(n))}, wanted {_wanted(value)}: {_seen(stored, n)}"
        for n, value in wrong.items()
    ]
    lines += [] if heads is None else [heads[0]]
    choices = {name: value for name, value in wrong.items() if value is not None}
    choices |= {} if heads is None else heads[1]
    raise BadCheckpointError(f"{where}: {'; '.join(lines)}", _way_out(wrong, heads, choices))


def _wanted(value: object) -> object:
    return "rope or none" if value is None else value


_HEADS = ("num_attention_heads", "kv_channels", "num_query_groups")
_Heads = tuple[str, dict[str, object]]


def _way_out(
    wrong: Mapping[str, object], heads: _Heads | None, choices: Mapping[str, object]
) -> str:
    doubts = ["the args and the weights do not agree"]
    options = [f"--set-arg {quote(f'{name}={value}')}" for name, value in choices.items()]
    if wrong.get("position_embedding_type", "") is None:
        doubts.append("no array tells which kind of positions it is, rope or none")
        options.append("--set-arg position_embedding_type=KIND")
    if heads is not None and not heads[1]:
        doubts.append("no array tells how heads, their size and their groups come to that")
        options += [f"--set-arg {name}=N" for name in _HEADS]
    return f"{'; '.join(doubts)}; if the weights are right, pass {' '.join(options)}"


def _told(stored: StoredShapes, name: str) -> bool:
    """Whether an array that must be there in any case is; without it, a missing one says
    nothing.
    """
    anchors = {
        "normalization": "decoder.final_layernorm.weight",
        "add_bias_linear": f"{_PROJ}.weight",
        "add_qkv": f"{_QKV}.weight",
        "qk_layernorm": f"{_QKV}.weight",
        "untie_embeddings_and_output_weights": _TABLE,
    }
    return anchors.get(name, _TABLE) in stored.shapes or name not in anchors


def _seen(stored: StoredShapes, name: str) -> str:
    """Say what the arrays show of an argument."""
    if name == "num_layers":
        return f"{_LAYERS[:-1]}: {stored.layers} layers are stored"
    keys = {
        "hidden_size": _TABLE,
        "padded_vocab_size": _TABLE,
        "ffn_hidden_size": f"{_DOWN}.weight",
        "swiglu": f"{_UP}.weight",
        "normalization": _FINAL_BIAS,
        "add_bias_linear": f"{_PROJ}.bias",
        "add_qkv_bias": f"{_QKV}.bias",
        "qk_layernorm": _QUERY_NORM,
        "untie_embeddings_and_output_weights": _HEAD,
        "max_position_embeddings": _POSITIONS,
        "position_embedding_type": _POSITIONS,
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
    if queries != heads * size and arguments.get("kv_channels") is not None:
        options.append(shown_heads(stored, queries // size) if queries >= size else {})
    options.append(shown_heads(stored, heads))
    fitting = [one for one in options if one and own_size in (None, one["kv_channels"])]
    if len(fitting) != 1:
        return line, {}
    said = {
        "num_attention_heads": heads,
        "kv_channels": size,
        "group_query_attention": groups != heads,
        "num_query_groups": groups,
    }
    return line, {n: value for n, value in fitting[0].items() if value != said[n]}
