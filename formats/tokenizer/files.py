"""Tokenizer files from elsewhere, for a checkpoint that has none of its own.

They come from a folder that holds them, whatever else is in it; or they are one file, as training
takes it: a ``tokenizer.json``, or tiktoken ranks that one is made from. They are data, and carried
as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.companions import Ids, is_companion, known_ids
from flmgrow.formats.tokenizer.settings import TOKENIZER_JSON
from flmgrow.formats.tokenizer.spoken import byte_tokenizer
from flmgrow.formats.tokenizer.tiktoken_ranks import as_tokenizer, read_ranks
from flmgrow.model.config import ModelConfig
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import parse_object, refuse_pointer
from flmgrow.text import Found, Setting, Text

MAX_TOKENIZER_BYTES = 64 << 20
BYTES = Path("bytes")
_CONFIG = "config.json"


@dataclass(frozen=True, eq=False)
class GivenTokenizer:
    """Files by name, and the special ids that a ``config.json`` beside them names."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    ids: Ids = field(default_factory=dict)


NO_TOKENIZER = GivenTokenizer()


def _content(path: Path) -> bytes:
    with ReadOnlyFile(path) as file:
        if file.size > MAX_TOKENIZER_BYTES:
            raise BadCheckpointError(
                Text("has ", Found(file.size), " bytes"),
                "such a file is no tokenizer",
                where=path,
                wanted=f"at most {MAX_TOKENIZER_BYTES}",
            )
        data = file.read(0, file.size)
    refuse_pointer(data[:64], str(path))
    return data


def _from_ranks(path: Path, config: ModelConfig) -> bytes:
    ranks = read_ranks(_content(path), str(path))
    if len(ranks) > config.vocab:
        raise BadCheckpointError(
            f"has {len(ranks)} tokens, but the model has {config.vocab} ids",
            Text(
                "give the tokenizer that the model was trained with, or ",
                Setting("true_vocab_size"),
            ),
            where=path,
        )
    return as_tokenizer(ranks)


def _from_json(path: Path) -> bytes:
    data = _content(path)
    if "model" not in parse_object(data, str(path)):
        raise BadCheckpointError(
            "has no entry model",
            "give the file that a tokenizer was saved as, or its folder",
            where=path,
            wanted="a tokenizer.json",
        )
    return data


def tokenizer_files(path: Path, config: ModelConfig) -> GivenTokenizer:
    """Return the tokenizer to write for a model.

    ``path`` is a folder with the files of one, a ``tokenizer.json`` of any name, a file of tiktoken
    ranks, or ``bytes``.

    Raises:
        BadCheckpointError: For a folder without any, a damaged file, and more ranks than the model
            has ids.
    """
    if path == BYTES and not path.exists():
        return GivenTokenizer({TOKENIZER_JSON: byte_tokenizer()})
    if not path.is_dir():
        content = _from_json(path) if path.suffix == ".json" else _from_ranks(path, config)
        return GivenTokenizer({TOKENIZER_JSON: content})
    names = sorted(entry.name for entry in path.iterdir() if is_companion(entry.name))
    if not names:
        raise BadCheckpointError(
            "holds no tokenizer files",
            "wanted tokenizer.json and the like, or name a file of tiktoken ranks",
            where=path,
        )
    ids: Ids = {}
    if (path / _CONFIG).is_file():
        where = str(path / _CONFIG)
        ids = known_ids(parse_object(_content(path / _CONFIG), where), where)
    return GivenTokenizer({name: _content(path / name) for name in names}, ids)
