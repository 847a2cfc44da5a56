"""Tiny models that speak: of transformers' families, with a tokenizer of bytes and a few words."""

import json
from pathlib import Path

import torch
from tiny_tokenizers import make_tokenizer_json
from transformers_models import make_model

VOCAB = 260


def make_speaker(folder: Path, name: str = "llama", size: int = VOCAB, **settings: object) -> Path:
    """A model of transformers' with a vocabulary of bytes and words, and its tokenizer."""
    make_model(name, torch.float64, vocab_size=size).save_pretrained(folder)
    make_tokenizer_json(folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def make_named(folder: Path, name: str = "llama", size: int = VOCAB, **settings: object) -> Path:
    """A speaker whose tokenizer says which token ends texts."""
    make_speaker(folder, name, size, **settings)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder
