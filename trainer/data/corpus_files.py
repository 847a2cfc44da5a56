"""Finding the files of a prepared corpus and comparing them with its manifest.

A corpus is named by its folder, by Megatron's prefix of a ``.bin`` and an ``.idx`` file, by one of
these files, or by a link to any of them. What its ``flmgrow-data.json`` says is compared each time:
the tokenizer, both sizes, and the checksum of the index, which is read whole anyway. The checksum
of the tokens is another matter, as there may be terabytes of them: it is compared where it takes a
moment (up to ``SUMMED_AT_ONCE``), and for all where ``data.checksums`` is ``always``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flmgrow.errors import BadDataError, UsageError
from flmgrow.storage.checksums import checksum_of
from flmgrow.storage.marker import refuse_marked
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.indexed import TokenIndex, read_index
from flmgrow.trainer.data.prepare import MANIFEST, PREFIX
from flmgrow.trainer.data.tokenizer import Tokenizer

SUMMED_AT_ONCE = 1 << 30
"""Bytes of tokens whose checksum takes a second at most."""

Checksums = Literal["auto", "always", "never"]

_ENDINGS = (".bin", ".idx")


@dataclass(frozen=True, eq=False)
class CorpusFiles:
    """The files of a corpus; ``prefix`` is Megatron's, ``files`` what its manifest says of them.

    ``index_sum`` is the checksum of its index (XXH3, 128 bits). A corpus that flmgrow did not make
    has no ``files``.
    """

    path: Path
    prefix: Path
    index: TokenIndex
    index_sum: str
    files: tuple[Json, ...] = ()

    @property
    def tokens_file(self) -> Path:
        """Where its tokens lie, one document behind the other."""
        return _file(self.prefix, ".bin")

    @property
    def tokens(self) -> int:
        """The number of tokens in the corpus."""
        return int(self.index.lengths.sum(dtype=np.int64))

    @property
    def name(self) -> str:
        """What people call it: the folder's name, or the prefix'."""
        folder = self.prefix.parent
        return folder.resolve().name if self.prefix.name == PREFIX else self.prefix.name

    def tokens_in(self, documents: range) -> int:
        """Return how many tokens are in some of its documents."""
        chosen = self.index.lengths[documents.start : documents.stop : documents.step]
        return int(chosen.sum(dtype=np.int64))


def open_corpus_files(
    path: Path, tokenizer: Tokenizer, checksums: Checksums = "auto"
) -> CorpusFiles:
    """Return the files of the corpus that ``path`` names, compared with their manifest.

    Raises:
        BadDataError: For files that do not fit together.
        UsageError: For another tokenizer's.
        IncompleteCheckpointError: For what is still being written.
    """
    refuse_marked(path, path.parent)
    prefix = prefix_of(path)
    index_file = _file(prefix, ".idx")
    index = read_index(index_file)
    index_sum = checksum_of(index_file)
    found = CorpusFiles(path, prefix, index, index_sum)
    _check_size(found.tokens_file, found.tokens * index.dtype.itemsize)
    manifest = _manifest_of(prefix)
    if manifest is None:
        return found
    return CorpusFiles(
        path, prefix, index, index_sum, _compared(manifest, found, tokenizer, checksums)
    )


def samples_in(tokens: int, sequence_length: int) -> int:
    """Return how many samples tokens are, each with a label behind its last one."""
    return (tokens - 1) // sequence_length


def prefix_of(path: Path) -> Path:
    """Return Megatron's prefix of the corpus that ``path`` names.

    Raises:
        BadDataError: For none.
    """
    prefix = path
    if path.is_dir() and not _file(path, ".idx").is_file():
        prefix = path / PREFIX
    elif path.suffix in _ENDINGS and not _file(path, ".idx").is_file():
        prefix = path.with_suffix("")
    if not _file(prefix, ".idx").is_file():
        raise BadDataError(
            "No such file", "make it by flmgrow data prepare", where=_file(prefix, ".idx")
        )
    return prefix


def _file(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _check_size(file: Path, wanted: int) -> None:
    found = file.stat().st_size if file.is_file() else 0
    if found != wanted:
        raise BadDataError(f"{found} bytes, its index says {wanted}", where=file)


def _manifest_of(prefix: Path) -> Path | None:
    """Return where the manifest of a corpus lies: beside its index, or what that is a link to."""
    index = _file(prefix, ".idx")
    for place in (index, index.resolve()):
        manifest = place.with_name(MANIFEST)
        if place.name == f"{PREFIX}.idx" and manifest.is_file():
            return manifest
    return None


def _compared(
    manifest: Path, found: CorpusFiles, tokenizer: Tokenizer, checksums: Checksums
) -> tuple[Json, ...]:
    """Return what a manifest says of the files of a corpus, if it is true."""
    try:
        content = json.loads(manifest.read_bytes())
        made_with, files = content["tokenizer"], list(content["files"])
        said = {file["path"]: (file["size"], file["xxh3_128"]) for file in files}
    except (ValueError, KeyError, TypeError) as error:
        raise BadDataError(f"not a manifest of data: {error}", where=manifest) from None
    if made_with not in (tokenizer.identity, tokenizer.earlier):
        differing = _differing(made_with, tokenizer.identity)
        hint = "say data.tokenizer and data.eod as data prepare was told"
        if list(differing) == ["sha256"]:
            hint += "; earlier versions of flmgrow knew a tokenizer.json by its very bytes"
        parts = ", ".join(f"{key} {was}, now {now}" for key, (was, now) in differing.items())
        raise UsageError(f"made with another tokenizer: {parts}", hint, where=found.path)
    for ending in _ENDINGS:
        file = _file(found.prefix, ending)
        size, wanted = said.get(f"{PREFIX}{ending}", (None, None))
        if size != file.stat().st_size:
            raise BadDataError(
                f"{file.stat().st_size} bytes, {manifest.name} says {size}", _REMAKE, where=file
            )
        summed = checksums == "always" or (checksums == "auto" and size <= SUMMED_AT_ONCE)
        if ending == ".idx":
            checksum = found.index_sum
        elif summed:
            checksum = checksum_of(file, cached=True)
        else:
            continue
        if checksum != wanted:
            raise BadDataError(
                f"its checksum is {checksum}, {manifest.name} says {wanted}", _REMAKE, where=file
            )
    return tuple(files)


_REMAKE = "the corpus was altered after data prepare: restore it from a copy, or prepare it anew"


def _differing(made_with: object, now: Json) -> dict[str, tuple[object, object]]:
    """Return in which of its parts a tokenizer is another one, with both values."""
    before = made_with if isinstance(made_with, dict) else {}
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: (was, is_now) for name, (was, is_now) in pairs.items() if was != is_now}
