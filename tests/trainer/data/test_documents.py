"""Documents come out as they went in, whatever the file; what is wrong is said with its line."""

import gzip
import json
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadDataError
from flmgrow.trainer.data import documents
from flmgrow.trainer.data.documents import Document, SourceReading, text_of
from flmgrow.trainer.data.sources import TextSource


def read(path: Path, key: str = "text") -> list[str]:
    source = TextSource(path, path.name)
    return [text_of(document, key) for document in read_raw(source)]


def read_raw(source: TextSource) -> list[Document]:
    return list(documents.read_documents(source, SourceReading(), lambda _: None))


def test_documents_come_out_as_they_went_in(tmp_path: Path) -> None:
    texts = ["one", "two\nlines", "", "汉字" * 50_000, "\u2028 is no line's end"]
    lines = "".join(
        json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts
    )
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"a\n\n\nb\r\n")
    assert read(tmp_path / "a.jsonl") == texts
    assert read(tmp_path / "b.txt") == ["a\n\n\nb\r\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_byte_order_mark_at_the_start_is_no_text(name: str, tmp_path: Path) -> None:
    """Anywhere else it is a character like others."""
    mark = b"\xef\xbb\xbf"
    content = b'{"text": "fine\xef\xbb\xbf"}\n' if name == "a.jsonl" else b"fine" + mark
    (tmp_path / name).write_bytes(mark + content)
    assert read(tmp_path / name) == ["fine\ufeff"]
    (tmp_path / name).write_bytes(mark)
    assert read(tmp_path / name) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n\t\r\n"])
def test_empty_lines_are_no_documents(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert read(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", r"a\.jsonl:3: not JSON: "),
        (b'{"text": "a', r"a\.jsonl:3: not JSON, cut short: "),
        (b'{"text": "a",', r"a\.jsonl:3: not JSON, cut short: "),
        (b'{"text": null}', r"a\.jsonl:3: 'text' is null, wanted a text"),
        (b"[" * 100_000, r"a\.jsonl:3: not JSON"),
        (b'["text"]', r"a\.jsonl:3: no object, wanted the key 'text'"),
        (b'{"body": "x", "id": 1}', r"a\.jsonl:3: has body, id, wanted the key 'text'"),
        (b'{"text": 5}', r"a\.jsonl:3: 'text' is of type int, wanted a text"),
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
    (tmp_path / "a.txt").write_bytes("café".encode("utf-16"))
    with pytest.raises(BadDataError, match=r"a\.txt: byte 0 is not UTF-8") as refusal:
        read(tmp_path / "a.txt")
    assert "UTF-16" in refusal.value.hint


def test_a_document_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "12345678"}\n'[:20])
    assert read(tmp_path / "a.jsonl") == ["12345678"]
    long = b'{"text": "' + b"1" * 90
    (tmp_path / "a.jsonl").write_bytes(b"\n" + long + b'"}\n{"text": ""}\n' + long)
    with pytest.raises(BadDataError, match=r"a\.jsonl:2: more than 20 bytes"):
        read(tmp_path / "a.jsonl")
    lines = [(d.line, d.whole) for d in read_raw(TextSource(tmp_path / "a.jsonl", "a.jsonl"))]
    assert lines == [(2, False), (3, True), (4, False)]
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
    reading, seen = SourceReading(), 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size

    found = list(documents.read_documents(TextSource(path, "a"), reading, count))
    assert [document.data for document in found] == ([data] if data else [])
    assert reading.size == seen == path.stat().st_size
    assert reading.xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())
