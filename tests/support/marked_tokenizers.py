"""Tokenizers as SentencePiece's, with a mark for the space, and what tokens say of their bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmgrow.trainer.data.tokenizer import Tokenizer

MARK = "▁"


def make_marked(path: Path, **parts: Any) -> Path:
    """Write a tokenizer as Gemma's: text with a mark for the space, and bytes for the rest."""
    library = pytest.importorskip("tokenizers")
    names = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "th", "▁th", "é"]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("t", "h"), ("▁", "th")]
    model = library.models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True)
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = library.normalizers.Replace(" ", "▁")
    steps = [library.decoders.Replace("▁", " "), library.decoders.ByteFallback()]
    tokenizer.decoder = library.decoders.Sequence([*steps, library.decoders.Fuse()])
    tokenizer.add_special_tokens(["<eos>"])
    path.write_text(json.dumps(json.loads(tokenizer.to_str()) | parts))
    return path


PREPENDED: dict[str, Any] = {
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
}  # fmt: skip
"""The way there and back of Llama 2's vocabulary: each text has a mark before it."""


def metaspace(scheme: str, *, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def make_metaspace(path: Path, scheme: str, *, split: bool, back: str, **parts: Any) -> Path:
    """Write a tokenizer whose ``Metaspace`` writes spaces as marks, and what takes them ``back``:
    a decoder of that kind, or as Llama 2's, or none that it says.
    """
    step = metaspace(scheme, split=split)
    decoders: dict[str, Any] = {
        "none": None,
        "metaspace": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, step]},
        "strip": PREPENDED["decoder"],
    }
    if scheme == "never":
        decoders["strip"] = {"type": "Sequence", "decoders": PREPENDED["decoder"]["decoders"][:-1]}
    ways = {"normalizer": None, "pre_tokenizer": step, "decoder": decoders[back]}
    return make_marked(path, **ways, **parts)


def size_of(tokenizer: Tokenizer, documents: list[str]) -> int:
    """Return the bytes that tokens say of ``documents``, each of which has an end."""
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    encoded = [np.append(tokenizer.encode(text), tokenizer.eod) for text in documents]
    tokens = np.concatenate([[tokenizer.eod], *encoded])
    return int(lengths.of(tokens[1:], tokens[:-1]).sum())
