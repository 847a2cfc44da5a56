"""Which files a corpus consists of: none that was meant is passed over without a word.

A folder means all below it, in the order of names, links followed; :class:`Sources` has what is
read, and what is not with the reason. Left out are hidden files and folders, which editors,
notebooks and archives leave behind; what is there twice, through links; and other kinds of files.

A ``.txt`` file is one document. ``.jsonl``, ``.ndjson`` and ``.json`` files have one JSON object
per line, ``.parquet`` files one in each row; as data sets keep their descriptions in plain
``.json`` files, these are read only where they are named, and not out of a folder.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import UsageError

LINES = (".jsonl", ".ndjson", ".json")
TABLE = ".parquet"
KINDS = (".txt", *LINES, TABLE)
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
WANTED = f"{', '.join(KINDS[:-1])}, plain or with {', '.join(COMPRESSIONS)}, or {TABLE}"
SHOWN = 3
"""Names of files that are told."""


@dataclass(frozen=True)
class TextSource:
    """A file of a corpus; ``name`` is what it is called where no path of this machine may stand."""

    path: Path
    name: str

    @property
    def lines(self) -> bool:
        """Whether each line, or each row of a table, is a document: an object with keys."""
        return self.kind in (*LINES, TABLE)

    @property
    def is_table(self) -> bool:
        """Whether it is a parquet file."""
        return self.kind == TABLE

    @property
    def kind(self) -> str:
        """The ending that says what the file holds, in small letters, or nothing."""
        name = self.path.name.lower().removesuffix(self.compression)
        found = next((kind for kind in KINDS if name.endswith(kind)), "")
        return "" if found == TABLE and self.compression else found

    @property
    def compression(self) -> str:
        """The ending that says how the file is compressed, in small letters, or nothing."""
        ending = self.path.suffix.lower()
        return ending if ending in COMPRESSIONS else ""


@dataclass(frozen=True)
class LeftOut:
    """What lies in a folder and is not read, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Sources:
    """The files of a corpus in order, and what is not read of its folders."""

    files: tuple[TextSource, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The names of what is not read, by the reason."""
        found: dict[str, list[str]] = {}
        for each in self.left_out:
            found.setdefault(each.why, []).append(each.name)
        return found


def is_lines(file: Path) -> bool:
    """Whether the name of a file is that of JSON lines, and not hidden."""
    return TextSource(file, "").kind in LINES and not file.name.startswith(".")


def find_sources(paths: Sequence[Path]) -> Sources:
    """Return the files of ``paths`` in order; of a folder, all below it by name.

    Raises:
        UsageError: For a path that is missing or of another kind, or named twice.
        OSError: For a folder that cannot be read.
    """
    files: list[TextSource] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            below = _Below(path)
            if not below.files:
                found = Sources((), tuple(below.left_out))
                raise UsageError(f"no file in it ends in {WANTED}", _why_none(found), where=path)
            files += below.files
            left_out += below.left_out
        elif not path.is_file():
            raise UsageError("no such file", where=path)
        elif not TextSource(path, "").kind:
            raise UsageError("unknown kind of file", where=path, wanted=WANTED)
        else:
            files.append(TextSource(path, path.name))
    seen: set[Path] = set()
    for source in files:
        real = source.path.resolve()
        if real in seen:
            raise UsageError("named twice", "weights of a blend repeat data", where=source.path)
        seen.add(real)
    return Sources(tuple(files), tuple(left_out))


def left_out_line(sources: Sources) -> str:
    """Return, in a line, how many are not read and why, with the first names; or nothing."""
    parts = (f"{len(names):,} {why} ({_first(names)})" for why, names in sources.reasons.items())
    return "; ".join(parts)


def _why_none(sources: Sources) -> str:
    line = left_out_line(sources)
    return f"left out: {line}" if line else ""


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class _Below:
    """The files below a folder, links followed once all that lies there itself was seen."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._above = {root.resolve(), *root.resolve().parents}
        self._seen: set[Path] = set()
        self._links: deque[Path] = deque()
        found: list[Path] = []
        self.left_out: list[LeftOut] = []
        found += self._walk(root)
        while self._links:
            found += self._follow(self._links.popleft())
        self.files = [TextSource(path, self._name(path)) for path in sorted(found)]
        self.left_out.sort(key=lambda each: each.name)

    def _walk(self, folder: Path) -> Iterator[Path]:
        self._seen.add(folder.resolve())
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            path = folder / entry.name
            if entry.name.startswith("."):
                self._leave_out(path, "hidden")
            elif entry.is_symlink():
                self._links.append(path)
            elif entry.is_dir():
                yield from self._walk(path)
            else:
                yield from self._take(path)

    def _follow(self, link: Path) -> Iterator[Path]:
        real = link.resolve()
        if not real.exists():
            self._leave_out(link, "linked to nothing")
        elif real in self._above and real != self._root.resolve():
            self._leave_out(link, "linked to a folder around this one")
        elif real in self._seen:
            self._leave_out(link, "linked to what is read already")
        elif real.is_dir():
            yield from self._walk(link)
        else:
            yield from self._take(link)

    def _take(self, path: Path) -> Iterator[Path]:
        kind = TextSource(path, "").kind
        if not path.is_file():
            self._leave_out(path, "no plain file")
        elif kind == ".json" and not TextSource(path, "").compression:
            self._leave_out(path, "in plain .json, which is read where it is named")
        elif not kind:
            ending = path.suffix.lower()
            self._leave_out(path, f"in {ending}" if ending else "without an ending")
        else:
            self._seen.add(path.resolve())
            yield path

    def _leave_out(self, path: Path, why: str) -> None:
        self.left_out.append(LeftOut(self._name(path), why))

    def _name(self, path: Path) -> str:
        name = self._root.name
        if name in ("", ".."):
            name = self._root.resolve().name
        return f"{name}/{path.relative_to(self._root)}"
