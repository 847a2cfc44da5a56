"""Corpora for a study: the English and the Chinese among text files in folders of your own.

    python examples/study_corpus.py OUT FOLDER [FOLDER ...]

All below the folders is looked at: plain text, reStructuredText, manual pages, fortunes, also with
``.gz`` behind. A file is Chinese if a tenth of its letters are Han characters, and English if none
is; others, what is no UTF-8, and what was read already under another name are left out. Long files
are cut at blank lines, and the pieces are ordered by a sum over their text, so that what is held
out for validation is of the same kind as what is read. Writes ``english.jsonl`` and
``chinese.jsonl``; the same files give the same bytes.
"""

import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

ENDINGS = (".txt", ".rst", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8", "")
"""Of names that may hold text; nothing: fortunes have no ending."""

PIECE = 8_000
"""Characters after which a file is cut, at the next blank line."""

LEAST = 200
"""Characters of a piece that is worth keeping."""

MOST_BYTES = 24_000_000
"""Of each language."""

HAN = re.compile("[\u4e00-\u9fff]")
LETTER = re.compile(r"[^\W\d_]")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def texts(folders: list[Path]) -> Iterator[str]:
    """Yield the text of each file once."""
    seen = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = path.name.removesuffix(".gz")
            ending = Path(name).suffix if "." in name else ""
            if not path.is_file() or path.resolve() in seen or ending not in ENDINGS:
                continue
            seen.add(path.resolve())
            text = text_of(path)
            if text is not None and not CONTROL.search(text):
                yield text


def text_of(path: Path) -> str | None:
    """Return a file's text, None if it has none."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return None


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces."""
    held = ""
    for paragraph in re.split(r"\n\s*\n", text):
        held += paragraph + "\n\n"
        if len(held) >= PIECE:
            yield held
            held = ""
    yield held


def language(text: str) -> str | None:
    """Return what a text is written in, None where it is neither."""
    letters, han = len(LETTER.findall(text)), len(HAN.findall(text))
    if letters < LEAST // 2:
        return None
    if han >= letters / 10:
        return "chinese"
    return None if han else "english"


def main() -> None:
    """Write the corpora of the folders that are named."""
    out, *folders = map(Path, sys.argv[1:])
    if not folders:
        sys.exit(__doc__)
    found: dict[str, dict[bytes, str]] = {"english": {}, "chinese": {}}
    for text in texts(folders):
        for piece in pieces(text):
            kind = language(piece)
            if kind is not None and len(piece) >= LEAST:
                found[kind][hashlib.sha256(piece.encode()).digest()] = piece
    out.mkdir(parents=True, exist_ok=True)
    for kind, by_sum in found.items():
        size = 0
        with (out / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for _, piece in sorted(by_sum.items()):
                size += len(piece.encode())
                if size > MOST_BYTES:
                    break
                file.write(json.dumps({"text": piece}, ensure_ascii=False) + "\n")
        print(f"{kind}: {size:,} bytes")


if __name__ == "__main__":
    main()
