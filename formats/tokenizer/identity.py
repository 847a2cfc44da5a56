"""Telling whether two tokenizer files are the same tokenizer.

A tokenizer is its vocabulary and its rules: the same file written anew is the same tokenizer.
Programs that keep a ``tokenizer.json`` write it in their own way: with other white space, keys in
another order, defaults spelt out or left out, merges as pairs or as text. None of that decides on a
token, nor do the parts that are not used here: how to cut or fill a batch, and the template of
special tokens. :func:`digest_of_tokenizer` is of what is left.

Whoever writes a model out finds what it was trained with in
:attr:`flmgrow.formats.history.training_state.Carried.tokenizer`, and compares by these digests.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

_UNUSED = ("version", "truncation", "padding", "post_processor")
_DEFAULTS: Mapping[str, Any] = {
    "byte_fallback": False,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "ignore_merges": False,
    "split": True,
    "use_regex": True,
}
"""What keys of a ``tokenizer.json`` mean where older versions of ``tokenizers`` wrote none."""


def digest_of_tokenizer(content: bytes) -> str:
    """Return the SHA-256, in hexadecimal, of what decides on tokens in a ``tokenizer.json``.

    Equal for files that differ in form alone.

    Raises:
        ValueError: For what is no JSON object.
    """
    parsed = json.loads(content)
    if not isinstance(parsed, dict):
        raise ValueError("no object")
    kept = {key: value for key, value in parsed.items() if key not in _UNUSED}
    return _sha256(_plain(kept))


def digest_of_ranks(ranks: Iterable[tuple[bytes, int]]) -> str:
    """Return the SHA-256, in hexadecimal, of tiktoken's ranks, in whichever order they come."""
    return _sha256(sorted((rank, token.hex()) for token, rank in ranks))


def prepend_scheme(step: Mapping[str, Any]) -> str:
    """Return where a ``Metaspace`` step puts its mark: before a text ``always`` or ``never``, or
    before the ``first`` of its parts only.
    """
    always = step.get("add_prefix_space", True)
    return str(step.get("prepend_scheme") or ("always" if always else "never"))


def _plain(value: Any) -> Any:
    """Return a part of a ``tokenizer.json`` with what it means where there are ways to say it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value.get("vocab"), dict):  # its keys are tokens, and no settings
        plain["vocab"] = value["vocab"]
    if isinstance(value.get("merges"), list):
        plain.pop("dropout", None)
        plain["merges"] = [m.split(" ") if isinstance(m, str) else m for m in value["merges"]]
        plain.setdefault("type", "BPE")
    if isinstance(value.get("added_tokens"), list):
        plain["added_tokens"] = sorted(
            plain["added_tokens"], key=partial(json.dumps, sort_keys=True)
        )
    if value.get("type") == "Metaspace":
        plain["prepend_scheme"] = prepend_scheme(value)
        plain.pop("add_prefix_space", None)
        plain.pop("str_rep", None)
    return {
        key: inner
        for key, inner in plain.items()
        if inner is not None and not (key in _DEFAULTS and inner == _DEFAULTS[key])
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
