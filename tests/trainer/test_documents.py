"""Documents come out as they went in, whatever the file; what is wrong is said with its line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer import documents
from flmgrow.trainer.documents import Document, Reading, Source, find_sources, text_of


def read(path: Path, key: str = "text") -> list[str]:
    source = Source(path, path.name)
    return [text_of(document, key) for document in read_raw(source)]


def read_raw(source: Source) -> list[Document]:
    return list(documents.read_documents(source, Reading(), lambda _: None))


def zstandard(data: bytes) -> bytes:
    module = pytest.importorskip("zstandard")
    return bytes(module.ZstdCompressor().compress(data))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard,
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_documents_come_out_as_they_went_in(ending: str, tmp_path: Path) -> None:
    texts = ["one", "two\nlines", "", "汉字" * 50_000, "\u2028 is no line's end"]
    lines = "".join(
        json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts
    )
    packed = COMPRESSORS[ending]
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed(lines.encode()))
    (tmp_path / f"b.txt{ending}").write_bytes(packed(b"a\n\n\nb\r\n"))
    assert read(tmp_path / f"a.jsonl{ending}") == texts
    assert read(tmp_path / f"b.txt{ending}") == ["a\n\n\nb\r\n"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_streams_one_after_the_other_are_one_file(ending: str, tmp_path: Path) -> None:
    packed = COMPRESSORS[ending]
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed(b'{"text": "a') + packed(b'b"}\n'))
    assert read(tmp_path / f"a.jsonl{ending}") == ["ab"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_file_that_is_cut_short_is_noticed(ending: str, kept: float, tmp_path: Path) -> None:
    whole = COMPRESSORS[ending](bytes(range(256)) * 1000)
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(BadDataError, match=rf"a\.txt{ending}: damaged or cut short"):
        read_raw(Source(path, "a"))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_at_all_is_noticed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(b"plain text, as it is")
    with pytest.raises(BadDataError, match="damaged or cut short"):
        read_raw(Source(path, "a"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n\t\r\n"])
def test_empty_lines_are_no_documents(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert read(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", r"a\.jsonl:3: not JSON"),
        (b"[" * 100_000, r"a\.jsonl:3: not JSON"),
        (b'["text"]', r"a\.jsonl:3: no object, wanted the key 'text'"),
        (b'{"body": "x", "id": 1}', r"a\.jsonl:3: has body, id, wanted the key 'text'"),
        (b'{"text": 5}', r"a\.jsonl:3: 'text' is of type int, wanted str"),
        (b'{"text": "\xff"}', r"a\.jsonl:3: byte 10 is not UTF-8 \(0xff\)"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(BadDataError, match=message):
        read(tmp_path / "a.jsonl")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(BadDataError, match=r"a\.txt: byte 3 is not UTF-8 \(0xe9\)"):
        read(tmp_path / "a.txt")


def test_a_document_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "12345678"}\n'[:20])
    assert read(tmp_path / "a.jsonl") == ["12345678"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "12345678"}\n')
    with pytest.raises(BadDataError, match=r"a\.jsonl:1: more than 20 bytes"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_bytes(b"x" * 21)
    with pytest.raises(BadDataError, match=r"a\.txt: more than 20 bytes") as refusal:
        read(tmp_path / "a.txt")
    assert ".jsonl" in refusal.value.hint


@given(data=st.binary(max_size=300))
def test_a_source_is_summed_as_it_is_read(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sum") / "a.txt.gz"
    path.write_bytes(gzip.compress(data))
    reading, seen = Reading(), 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size

    found = list(documents.read_documents(Source(path, "a"), reading, count))
    assert [document.data for document in found] == ([data] if data else [])
    assert reading.size == seen == path.stat().st_size
    assert reading.xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_a_folder_means_what_lies_below_it(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "z").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl.gz", "z/c.txt.zst", "notes.md"):
        (corpus / name).write_bytes(b"")
    (tmp_path / "more.txt").write_bytes(b"")
    found = find_sources([tmp_path / "more.txt", corpus])
    names = ["more.txt", "corpus/a.jsonl.gz", "corpus/b.txt", "corpus/z/c.txt.zst"]
    assert [source.name for source in found] == names


def test_paths_that_mean_no_corpus_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, message in (("a.md", "unknown kind"), ("none.txt", "no such"), ("empty", "no file")):
        with pytest.raises(UsageError, match=message):
            find_sources([tmp_path / path])
    with pytest.raises(UsageError, match="named twice"):
        find_sources([tmp_path / "a.txt", tmp_path])


def test_zstandard_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    with pytest.raises(UsageError, match="needs the package zstandard"):
        read(tmp_path / "a.txt.zst")
