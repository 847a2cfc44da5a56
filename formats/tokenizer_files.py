"""Tokenizer files from elsewhere, for a checkpoint that has none of its own.

They come from a folder that holds them, whatever else is in it, or are made from one file of
tiktoken ranks. They are data, and carried as they are.
"""

import json
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.files import ReadOnlyFile
from flmgrow.formats.huggingface_contents import TOKENIZER
from flmgrow.formats.tiktoken_ranks import as_tokenizer, read_ranks
from flmgrow.model.config import ModelConfig

MAX_TOKENIZER_BYTES = 64 << 20


def _content(path: Path) -> bytes:
    file = ReadOnlyFile(path)
    try:
        if file.size > MAX_TOKENIZER_BYTES:
            raise BadCheckpointError(
                f"{path}: has {file.size} bytes, wanted at most {MAX_TOKENIZER_BYTES}",
                "such a file is no tokenizer",
            )
        return file.read(0, file.size)
    finally:
        file.close()


def _from_ranks(path: Path, config: ModelConfig) -> dict[str, bytes]:
    ranks = read_ranks(_content(path), str(path))
    if len(ranks) > config.vocab:
        raise BadCheckpointError(
            f"{path}: has {len(ranks)} tokens, but the model has {config.vocab} ids",
            "give the tokenizer that the model was trained with, or --true-vocab-size",
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": as_tokenizer(ranks),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }


def tokenizer_files(path: Path, config: ModelConfig) -> dict[str, bytes]:
    """Return the content of the tokenizer files to write for a model, by name.

    ``path`` is a folder with such files, or a file of tiktoken ranks. Raises BadCheckpointError for
    a folder without any, a damaged file, and more tokens than the model has ids.
    """
    if not path.is_dir():
        return _from_ranks(path, config)
    names = sorted(entry.name for entry in path.iterdir() if TOKENIZER.fullmatch(entry.name))
    if not names:
        raise BadCheckpointError(
            f"{path}: holds no tokenizer files",
            "wanted tokenizer.json and the like, or name a file of tiktoken ranks",
        )
    return {name: _content(path / name) for name in names}
