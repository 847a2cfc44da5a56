"""A table's rows are documents like lines of JSON; what is no table is told in a line."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, refused

from flmgrow.trainer.data.prepare import MANIFEST

parquet: Any = pytest.importorskip("pyarrow.parquet")
pyarrow: Any = pytest.importorskip("pyarrow")

TEXTS = ["one", "two\nlines", "汉字" * 100, "", "\u2028 is no line's end", *map(str, range(600))]


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=100)
    return path


def prepared(source: Path, *options: object) -> bytes:
    out = source.with_suffix(".corpus")
    accepted("data", "prepare", source, out, "--tokenizer", "bytes", "--workers", 1, *options)
    return (out / "data.bin").read_bytes()


def lines(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_makes_the_tokens_that_its_rows_as_lines_make(tmp_path: Path, nested: bool) -> None:
    """Beside another column, which need not even be text, and from a field of a column."""
    column: list[Any] = [{"text": text, "id": 1} for text in TEXTS] if nested else TEXTS
    key = "meta.text" if nested else "body"
    columns = {key.partition(".")[0]: column, "url": [b"\xff"] * len(TEXTS)}
    found = prepared(table(tmp_path / "a.parquet", **columns), "--key", key)
    assert found == prepared(lines(tmp_path / "b.jsonl"))


def test_the_manifest_knows_the_file(tmp_path: Path) -> None:
    source = table(tmp_path / "a.parquet", text=TEXTS)
    prepared(source)
    manifest = json.loads((tmp_path / "a.corpus" / MANIFEST).read_text())
    assert manifest["sources"][0]["size"] == source.stat().st_size
    assert manifest["documents"] == len(TEXTS) - 1
    again = accepted("data", "prepare", source, tmp_path / "a.corpus", "--tokenizer", "bytes")
    assert again.out.startswith("found ")


def test_what_is_no_table_of_texts_is_refused(tmp_path: Path) -> None:
    words = ("data", "prepare", tmp_path / "a.parquet", tmp_path / "out", "--tokenizer", "bytes")
    table(tmp_path / "a.parquet", body=["x"], url=["y"])
    told = refused(3, "a.parquet: has the columns body, url, wanted 'text'", *words, place=tmp_path)
    assert "hint: name the one that holds the text: --jsonl-key" in told.err
    table(tmp_path / "a.parquet", text=["fine", None])
    refused(3, "a.parquet:2: 'text' is null, wanted a text", *words, place=tmp_path)
    whole = table(tmp_path / "a.parquet", text=TEXTS).read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:4] + bytes(4000) + whole[4004:]):
        (tmp_path / "a.parquet").write_bytes(content)
        refused(3, "a.parquet: cannot be read on as parquet: ", *words, place=tmp_path)


def test_a_key_with_a_dot_that_is_there_is_that_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"meta.text": "one", "meta": {"text": "two", "more": {"text": "three"}}}\n')
    assert prepared(path, "--key", "meta.text")[:6] == b"o\0n\0e\0"
    accepted("data", "prepare", path, tmp_path / "b", "--tokenizer", "bytes", "--key",
             "meta.more.text")  # fmt: skip
    assert (tmp_path / "b" / "data.bin").read_bytes()[:10] == b"t\0h\0r\0e\0e\0"
    words = ("data", "prepare", path, tmp_path / "c", "--tokenizer", "bytes", "--key", "meta.less")
    refused(3, "a.jsonl:1: has meta.text, meta, wanted the key 'meta.less'", *words, place=tmp_path)
