"""A folder means all below it; what is not read of it has a reason."""

from pathlib import Path

import pytest

from flmgrow.errors import UsageError
from flmgrow.trainer.data.sources import TextSource, find_sources, left_out_line


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def names(*paths: Path) -> list[str]:
    return [source.name for source in find_sources(paths).files]


def test_a_folder_means_what_lies_below_it(tmp_path: Path) -> None:
    corpus = make(tmp_path / "corpus", "b.txt", "a.jsonl.gz", "z/c.txt.zst", "b/x.txt", "b-y.txt")
    make(tmp_path, "more.txt")
    assert names(tmp_path / "more.txt", corpus) == [
        "more.txt", "corpus/a.jsonl.gz", "corpus/b/x.txt", "corpus/b-y.txt", "corpus/b.txt",
        "corpus/z/c.txt.zst",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "lines", "compression"),
    [
        ("a.jsonl", True, ""),
        ("A.JSONL", True, ""),
        ("a.JsonL.GZ", True, ".gz"),
        ("c4.json.gz", True, ".gz"),
        ("a.ndjson.xz", True, ".xz"),
        ("a.jsonl.bz2", True, ".bz2"),
        ("a.TXT.zst", False, ".zst"),
        ("a.txt", False, ""),
        ("a.PARQUET", True, ""),
    ],
)
def test_kinds_are_known_by_their_endings(
    name: str, lines: bool, compression: str, tmp_path: Path
) -> None:
    make(tmp_path / "src", name)
    assert names(tmp_path / "src") == [f"src/{name}"]
    source = TextSource(tmp_path / "src" / name, name)
    assert (source.lines, source.compression) == (lines, compression)


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    make(tmp_path / "src", "a.txt", "B.CSV", "c.csv", "README", "info.json", "._a.txt")
    make(tmp_path / "src", ".ipynb_checkpoints/a-checkpoint.txt", "d/.hidden.jsonl", "notes.md")
    found = find_sources([tmp_path / "src"])
    assert [source.name for source in found.files] == ["src/a.txt"]
    assert found.reasons == {
        "hidden": ["src/._a.txt", "src/.ipynb_checkpoints", "src/d/.hidden.jsonl"],
        "in .csv": ["src/B.CSV", "src/c.csv"],
        "without an ending": ["src/README"],
        "in plain .json, which is read where it is named": ["src/info.json"],
        "in .md": ["src/notes.md"],
    }
    assert left_out_line(found).startswith(
        "3 hidden (src/._a.txt, src/.ipynb_checkpoints, src/d/.hidden.jsonl); 2 in .csv ("
    )
    make(tmp_path / "src", ".more")
    assert "4 hidden (src/._a.txt, src/.ipynb_checkpoints, src/.more, ...)" in left_out_line(
        find_sources([tmp_path / "src"])
    )


def test_what_is_named_is_read(tmp_path: Path) -> None:
    make(tmp_path, "info.json", ".hidden/a.txt", ".b.txt")
    assert names(tmp_path / "info.json", tmp_path / ".hidden", tmp_path / ".b.txt") == [
        "info.json", ".hidden/a.txt", ".b.txt",
    ]  # fmt: skip


def test_links_are_followed_once(tmp_path: Path) -> None:
    """As a cache of downloads has it, where names are links to files without one."""
    src = make(tmp_path / "src", "d/b.txt", "z.txt")
    make(tmp_path / "blobs", "0123", "deep/c.txt")
    (src / "a.jsonl").symlink_to("../blobs/0123")
    (src / "linked").symlink_to("../blobs/deep")
    (src / "a-copy").symlink_to("d")
    (src / "around").symlink_to("..")
    (src / "self").symlink_to(".")
    (src / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "blobs" / "deep" / "loop").symlink_to("../deep")
    found = find_sources([src])
    assert [source.name for source in found.files] == [
        "src/a.jsonl", "src/d/b.txt", "src/linked/c.txt", "src/z.txt",
    ]  # fmt: skip
    assert found.reasons == {
        "linked to what is read already": ["src/a-copy", "src/linked/loop", "src/self"],
        "linked to a folder around this one": ["src/around"],
        "linked to nothing": ["src/gone.txt"],
    }


def test_this_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path / "src", "a.txt"))
    assert names(Path()) == ["src/a.txt"]


def test_paths_that_mean_no_corpus_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "a.txt", "b.parquet.gz", "left/c.csv", "left/.d.txt")
    (tmp_path / "empty").mkdir()
    for path, message, hint in (
        ("a.md", "unknown kind", ""),
        ("b.parquet.gz", "unknown kind", ""),
        ("none.txt", "no such", ""),
        ("empty", "no file", ""),
        ("left", "no file", r"left out: 1 hidden \(left/\.d\.txt\); 1 in \.csv"),
    ):
        with pytest.raises(UsageError, match=message) as refusal:
            find_sources([tmp_path / path])
        assert __import__("re").search(hint, refusal.value.hint)
    with pytest.raises(UsageError, match="named twice"):
        find_sources([tmp_path / "a.txt", tmp_path])
