"""A model in words: its sizes and its choices, on a line each; numbers as people read them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from math import isfinite

from flmgrow.errors import shown
from flmgrow.model.config import ModelConfig
from flmgrow.text import PYTHON, Words


def amount(count: int) -> str:
    """Return a number of parameters as people read it, with the exact one for small models."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= limit:
            return f"{count / limit:.2f}{unit}"
    return f"{count:,}"


def model_text(config: ModelConfig) -> str:
    """Return the sizes of a model on one line."""
    groups = "" if config.queries_per_group == 1 else f" in {config.kv_groups} groups"
    return (
        f"{config.layers} layers, hidden {config.hidden}, ffn {config.ffn}, "
        f"{config.heads} heads of {config.head_dim}{groups}, vocab {config.vocab}"
    )


def kind_text(config: ModelConfig) -> str:
    """Return the choices of a model on one line."""
    parts: list[str] = [config.norm, config.activation, config.positions]
    parts.append("tied embeddings" if config.tied else "separate head")
    if biases := _biases(config):
        parts.append(biases)
    if config.norms_after:
        parts.append("norms around branches" if config.norms_before else "norms after branches")
    if config.qk_norm:
        over = " over all heads" if config.qk_norm_of_all else ""
        parts.append(f"query and key norms{over}")
    for name, cap in (("scores", config.score_cap), ("logits", config.logit_cap)):
        if cap is not None:
            parts.append(f"{name} capped at {cap:g}")
    if config.layer_kinds:
        parts.append(f"layers of {_kinds(config)}")
    if config.residual != "sequential":
        parts.append("attention and FFN in parallel")
    parts.append(f"eps {config.norm_eps:.6g}")
    return ", ".join(parts)


def _biases(config: ModelConfig) -> str:
    """Return which projections have biases, in words."""
    having = {
        "query, key and value": config.qkv_bias,
        "attention's output": config.attention_out_bias,
        "FFN": config.linear_bias,
    }
    named = [name for name, has in having.items() if has]
    if len(named) == len(having):
        return "biases"
    return f"biases on {' and '.join(named)}" if named else ""


def _kinds(config: ModelConfig) -> str:
    """Return in words what layers differ in, in their order; nothing if they do not."""
    runs = ((str(kind), len([*run])) for kind, run in groupby(config.layer_kinds))
    return ", ".join(f"{count} x {kind}" for kind, count in runs)


def flat_fields(config: ModelConfig) -> dict[str, object]:
    """Return all fields of a model, those of its parts by the part's name and their own.

    Those that may stand for another one's value have a value of their own.
    """
    fields: dict[str, object] = {}
    own = {"out_bias": config.attention_out_bias, "layer_kinds": _kinds(config)}
    for name, value in {**asdict(config), **own}.items():
        parts = value.items() if isinstance(value, dict) else ()
        fields |= {f"{name}.{part}": inner for part, inner in parts} or {name: value}
    return fields


def differences(wanted: ModelConfig, found: ModelConfig) -> dict[str, object]:
    """Return the fields of ``wanted`` that ``found`` has otherwise, with their values."""
    other = flat_fields(found)
    return {name: value for name, value in flat_fields(wanted).items() if value != other[name]}


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"


def decimal_size(count: float) -> str:
    """Return a number of bytes on disks, which count in powers of ten."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:,.0f} B"


def clock_text(seconds: float) -> str:
    """Return a time as ``3d 04:05`` or ``4:05:06``; ``?`` for one that nobody knows."""
    if not isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{hours // 24}d {hours % 24:02}:{minutes:02}"


def value_text(value: object) -> str:
    """Return a setting's value, a float in as few digits as tell it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def aligned(rows: Iterable[tuple[str, str]], words: Words = PYTHON) -> list[str]:
    """Return ``name  value`` lines with the values in one column, in these words."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {shown(value, words)}".rstrip() for name, value in pairs]
