"""Arguments that the user gives for a checkpoint that has none, or has wrong ones.

They take the place of stored ones before anything is read from them, and everything that follows
(layout, shapes, what is written) sees them alone. A checkpoint without any arguments gets them all:
sizes are taken from its arrays, what the user gave comes on top, and what neither tells stops the
run.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.fields import shown
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments import model_rows as rows
from flmgrow.formats.megatron.arguments.defaults import defaults
from flmgrow.formats.megatron.arguments.model import read_config
from flmgrow.formats.megatron.arguments.names import FEATURES, HARMLESS, UNCLEAR, UNDERSTOOD
from flmgrow.formats.megatron.arguments.new import IMPLEMENTATIONS, new_arguments
from flmgrow.formats.megatron.arguments.pipeline import written_layout
from flmgrow.formats.megatron.arguments.row import ModelArgument
from flmgrow.formats.megatron.arguments.run_rows import DTYPE
from flmgrow.formats.megatron.arguments.shapes import StoredShapes, shown_arguments, shown_heads
from flmgrow.formats.megatron.arguments.vocabulary_rows import PADDED_VOCAB
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.torch_file.objects import make_namespace
from flmgrow.formats.torch_file.values import Global
from flmgrow.text import Pass, Setting, Text

CHECKPOINT_VERSION = 3.0
_SETTING = Setting("set_arguments")
_DTYPE = "torch."
_ROTARY = (rows.ROTARY_BASE, rows.ROTARY_PERCENT)
_BESIDE = ("run_config.yaml", "config.json", "huggingface/config.json")
"""Files that may describe the model, as Megatron-Bridge and verl lay them beside its weights."""


_SYNONYMS = (
    rows.NORM_EPS.names,
    rows.ZERO_CENTRED.names,
    (rows.POSITIONS.name, rows.USE_ROTARY.name),
)
"""Two names for one thing: whichever is given, the other must not overrule it."""

_IN_CONFIG_JSON: Mapping[str, str] = {
    "num_hidden_layers": rows.LAYERS.name,
    "intermediate_size": rows.FFN.name,
    "num_key_value_heads": rows.GROUPS.name,
    "head_dim": rows.HEAD_DIM.name,
    "rms_norm_eps": rows.NORM_EPS.name,
    "layer_norm_eps": rows.NORM_EPS.name,
    "layer_norm_epsilon": rows.NORM_EPS.name,
    "rope_theta": rows.ROTARY_BASE.name,
    "partial_rotary_factor": rows.ROTARY_PERCENT.name,
    "tie_word_embeddings": rows.UNTIED.name,
    "torch_dtype": DTYPE.name,
}
"""What a ``config.json`` calls arguments, where the names are not alike."""


def parse_given(texts: Sequence[str]) -> dict[str, object]:
    """Return the values in texts such as ``num_layers=28``.

    A value is read as in YAML, and ``None`` is no value.

    Raises:
        UsageError: For anything else.
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")  # as Megatron-LM's own options are spelt
        if not equals or not name.isidentifier():
            said = Text(_SETTING, f" {text}: wanted NAME=VALUE")
            raise UsageError(said, "such as num_layers=28")
        if name in found:
            raise UsageError(Text(_SETTING, f" {name}: given twice"))
        where = Text(_SETTING, f" {text}")
        found[name] = None if value == "None" else _value(value, where)
    return found


def _value(text: str, where: Text) -> object:
    from flmgrow.storage.strict_yaml import parse_yaml  # most commands are given none

    return parse_yaml(text.encode(), where)


def check_names(given: Mapping[str, object], stored: Mapping[str, object]) -> None:
    """Raise UsageError for a name that neither Megatron-LM nor the checkpoint has."""
    known = {*UNDERSTOOD, *FEATURES, *UNCLEAR, *HARMLESS, *defaults(), *stored, DTYPE.name}
    for name in given:
        if name not in known:
            near = _meant(name, known)
            raise UsageError(
                Text(_SETTING, f" {name}: Megatron-LM has no such argument"),
                f"did you mean {near}?" if near else "names are those of its args: num_layers",
            )


def _meant(name: str, known: Collection[str]) -> str | None:
    """Return the argument that ``name`` stands for elsewhere, or is likely a slip for."""
    near = get_close_matches(name, known, 1, 0.8) if name not in _IN_CONFIG_JSON else ()
    longer = sorted((one for one in known if one.startswith(name)), key=len)
    found = (*near, *longer, *get_close_matches(name, UNDERSTOOD, 1))
    return _IN_CONFIG_JSON.get(name) or next(iter(found), None)


def as_stored(given: Mapping[str, object]) -> dict[str, object]:
    """Return given values as a file would hold them: ``torch.bfloat16`` is a dtype, and so is
    ``bfloat16`` where an argument is one.

    Raises:
        UsageError: For a value of another kind than every version's default.
    """
    return {name: _stored_value(name, value) for name, value in given.items()}


def _stored_value(name: str, value: object) -> object:
    usual = [one for one in defaults().get(name, ()) if one is not None]
    if value is None or isinstance(value, Global):
        return value
    if name == DTYPE.name or any(str(one).startswith(_DTYPE) for one in usual):
        kind = str(value).removeprefix(_DTYPE)
        if kind == str(value) and kind not in DTYPES:
            raise UsageError(
                Text(_SETTING, f" {name}={shown(value)}: wanted a dtype: torch.bfloat16")
            )
        return Global("torch", kind)
    kinds = {_kind(one) for one in usual}
    if len(kinds) == 1 and _kind(value) not in kinds:
        raise UsageError(
            Text(_SETTING, f" {name}={shown(value)}: wanted {kinds.pop()}, as {shown(usual[0])} is")
        )
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "True or False"
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"


def corrected(stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Return ``stored`` arguments with those that are ``given``.

    Raises:
        UsageError: For a slip.
    """
    check_names(given, stored)
    overruled = {other for pair in _SYNONYMS for name, other in (pair, pair[::-1]) if name in given}
    kept = {name: value for name, value in stored.items() if name not in overruled}
    return {**kept, **as_stored(given)}


def with_arguments(
    content: Mapping[object, object], arguments: Mapping[str, object]
) -> dict[object, object]:
    """Return a rank's content with other arguments, and the version of what has some."""
    version: dict[object, object] = {}
    if "args" not in content:
        version["checkpoint_version"] = CHECKPOINT_VERSION
    return {**version, **content, "args": make_namespace(dict(arguments))}


def made_arguments(
    given: Mapping[str, object], stored: StoredShapes, layout: Layout | None, fused: bool,
    where: str, folder: Path,
) -> dict[str, object]:  # fmt: skip
    """Return the arguments of a model whose files hold none.

    ``layout`` is that of its files, None where they have none.

    Raises:
        BadCheckpointError: If arrays and ``given`` arguments do not tell everything; the hint names
            a file in ``folder`` that may; the message names file ``where`` and what is missing.
    """
    check_names(given, {})
    heads = rows.HEADS.get(given)
    shown = shown_arguments(stored)
    if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0:
        shown = {**shown, **shown_heads(stored, heads)}
    told = {**shown, **as_stored(given)}
    if missing := _missing(told):
        told_by = ", ".join(f"{name}={value}" for name, value in shown.items())
        raise BadCheckpointError(
            f"has no args, and its arrays do not tell {', '.join(missing)}; they tell "
            f"{told_by or 'nothing'}",
            _how_to_tell(folder, given, missing),
            where=where,
        )
    padded = PADDED_VOCAB.get(told)
    if not isinstance(padded, int):
        raise UsageError(Text(_SETTING, f" {PADDED_VOCAB.name}={padded}: wanted a whole number"))
    config = read_config(told, where, padded, given)
    made = {**new_arguments(config, padded, stored.dtype, IMPLEMENTATIONS[fused]), **told}
    return made if layout is None else {**made, **written_layout(made, layout)}


def _missing(told: Mapping[str, object]) -> list[str]:
    """Return the arguments that change the function, and that nothing tells."""
    needed: list[ModelArgument[Any]] = [rows.LAYERS, rows.HIDDEN, rows.HEADS, PADDED_VOCAB]
    needed += [rows.MAX_POSITIONS, rows.POSITIONS]
    missing = [row.name for row in needed if row.get(told) is None]
    if not set(rows.NORM_EPS.names) & told.keys():
        missing.append(rows.NORM_EPS.name)
    if rows.POSITIONS.get(told) == "rope":
        missing += [row.name for row in _ROTARY if row.get(told) is None]
    plain = {row.name for row in (rows.SQUARED_RELU, rows.TANH_GELU, rows.FUSED_GELU)}
    if not rows.SWIGLU.get(told) and not told.keys() & plain:
        missing.append(rows.SQUARED_RELU.name)
    return missing


def _how_to_tell(folder: Path, given: Mapping[str, object], missing: list[str]) -> Text:
    places = [at / name for at in (folder, folder.parent) for name in _BESIDE]
    beside = [path for path in places if path.is_file()]
    if beside and not given:
        return Text(f"{beside[0]} describes it: ", Pass("args_from", beside[0]))
    rope = rows.POSITIONS.name in missing
    rotary = " and ".join(row.name for row in _ROTARY)
    return Text(
        Pass("args_from"),
        " with the run_config.yaml, config.json or checkpoint folder of the same model, or ",
        Setting(_SETTING.name, dict.fromkeys(missing, ...)),
        f" (and, for rope, {rotary})" if rope else "",
    )
