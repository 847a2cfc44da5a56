"""Arguments that the user gives for a checkpoint that has none, or has wrong ones.

They take the place of stored ones before anything is read from them, and everything that follows
(layout, shapes, what is written) sees them alone. A checkpoint without any arguments gets them all:
sizes are taken from its arrays, what the user gave comes on top, and what neither tells stops the
run.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from shlex import quote

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.fields import shown
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.defaults import defaults
from flmgrow.formats.megatron.arguments.model import read_config
from flmgrow.formats.megatron.arguments.names import FEATURES, HARMLESS, UNCLEAR, UNDERSTOOD
from flmgrow.formats.megatron.arguments.new import IMPLEMENTATIONS, new_arguments
from flmgrow.formats.megatron.arguments.pipeline import written_layout
from flmgrow.formats.megatron.arguments.shapes import StoredShapes, shown_arguments, shown_heads
from flmgrow.formats.reading import DTYPES
from flmgrow.formats.torch_file.values import Global, make_namespace
from flmgrow.storage.strict_yaml import parse_yaml

CHECKPOINT_VERSION = 3.0
_DTYPE = "torch."
_WEIGHTS_DTYPE = "params_dtype"
_ROTARY = ("rotary_base", "rotary_percent")
_BESIDE = ("run_config.yaml", "config.json", "huggingface/config.json")
"""Files that may describe the model, as Megatron-Bridge and verl lay them beside its weights."""


_SYNONYMS = (
    ("norm_epsilon", "layernorm_epsilon"),
    ("apply_layernorm_1p", "layernorm_zero_centered_gamma"),
    ("position_embedding_type", "use_rotary_position_embeddings"),
)
"""Two names for one thing: whichever is given, the other must not overrule it."""

_IN_CONFIG_JSON: Mapping[str, str] = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "layer_norm_epsilon": "norm_epsilon",
    "rope_theta": "rotary_base",
    "partial_rotary_factor": "rotary_percent",
    "tie_word_embeddings": "untie_embeddings_and_output_weights",
    "torch_dtype": _WEIGHTS_DTYPE,
}
"""What a ``config.json`` calls arguments, where the names are not alike."""


def parse_given(option: str, texts: Sequence[str]) -> dict[str, object]:
    """Return the values in texts such as ``num_layers=28``, that stand under ``option``.

    A value is read as in YAML, and ``None`` is no value. Raises UsageError for anything else.
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")  # as Megatron-LM's own options are spelt
        if not equals or not name.isidentifier():
            raise UsageError(f"{option} {text}: wanted NAME=VALUE", "such as num_layers=28")
        if name in found:
            raise UsageError(f"{option} {name}: given twice")
        found[name] = None if value == "None" else parse_yaml(value.encode(), f"{option} {text}")
    return found


def check_names(given: Mapping[str, object], stored: Mapping[str, object]) -> None:
    """Raise UsageError for a name that neither Megatron-LM nor the checkpoint has."""
    known = {*UNDERSTOOD, *FEATURES, *UNCLEAR, *HARMLESS, *defaults(), *stored, _WEIGHTS_DTYPE}
    for name in given:
        if name not in known:
            near = _meant(name, known)
            raise UsageError(
                f"--set-arg {name}: Megatron-LM has no such argument",
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

    Raises UsageError for a value of another kind than every version's default.
    """
    return {name: _stored_value(name, value) for name, value in given.items()}


def _stored_value(name: str, value: object) -> object:
    usual = [one for one in defaults().get(name, ()) if one is not None]
    if value is None or isinstance(value, Global):
        return value
    if name == _WEIGHTS_DTYPE or any(str(one).startswith(_DTYPE) for one in usual):
        kind = str(value).removeprefix(_DTYPE)
        if kind == str(value) and kind not in DTYPES:
            raise UsageError(f"--set-arg {name}={shown(value)}: wanted a dtype: torch.bfloat16")
        return Global("torch", kind)
    kinds = {_kind(one) for one in usual}
    if len(kinds) == 1 and _kind(value) not in kinds:
        raise UsageError(
            f"--set-arg {name}={shown(value)}: wanted {kinds.pop()}, as {shown(usual[0])} is"
        )
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "True or False"
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"


def corrected(stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Return ``stored`` arguments with those that are ``given``. Raises UsageError for a slip."""
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

    ``layout`` is that of its files, None where they have none. Raises BadCheckpointError, naming
    file ``where`` and what is missing, if arrays and ``given`` arguments do not tell everything;
    the hint names a file in ``folder`` that may.
    """
    check_names(given, {})
    heads = given.get("num_attention_heads")
    shown = shown_arguments(stored)
    if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0:
        shown = {**shown, **shown_heads(stored, heads)}
    told = {**shown, **as_stored(given)}
    if missing := _missing(told):
        told_by = ", ".join(f"{name}={value}" for name, value in shown.items())
        raise BadCheckpointError(
            f"{where}: has no args, and its arrays do not tell {', '.join(missing)}; they tell "
            f"{told_by or 'nothing'}",
            _how_to_tell(folder, given, missing),
        )
    padded = told["padded_vocab_size"]
    if not isinstance(padded, int):
        raise UsageError(f"--set-arg padded_vocab_size={padded}: wanted a whole number")
    config = read_config(told, where, padded, given)
    made = {**new_arguments(config, padded, stored.dtype, IMPLEMENTATIONS[fused]), **told}
    return made if layout is None else {**made, **written_layout(made, layout)}


def _missing(told: Mapping[str, object]) -> list[str]:
    """Return the arguments that change the function, and that nothing tells."""
    needed = ["num_layers", "hidden_size", "num_attention_heads", "padded_vocab_size"]
    needed += ["max_position_embeddings", "position_embedding_type"]
    missing = [name for name in needed if told.get(name) is None]
    if not {"norm_epsilon", "layernorm_epsilon"} & told.keys():
        missing.append("norm_epsilon")
    if told.get("position_embedding_type") == "rope":
        missing += [name for name in _ROTARY if told.get(name) is None]
    plain = ("squared_relu", "openai_gelu", "bias_gelu_fusion")
    if not told.get("swiglu") and not told.keys() & set(plain):
        missing.append("squared_relu")
    return missing


def _how_to_tell(folder: Path, given: Mapping[str, object], missing: list[str]) -> str:
    places = [at / name for at in (folder, folder.parent) for name in _BESIDE]
    beside = [path for path in places if path.is_file()]
    if beside and not given:
        return f"{beside[0]} describes it: pass --args-from {quote(str(beside[0]))}"
    needed = " ".join(f"--set-arg {name}=..." for name in missing)
    rope = "position_embedding_type" in missing
    return (
        "pass --args-from with the run_config.yaml, config.json or checkpoint folder of the same "
        f"model, or {needed}" + (" (and, for rope, rotary_base and rotary_percent)" if rope else "")
    )
