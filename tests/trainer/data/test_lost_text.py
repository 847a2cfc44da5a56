"""No text is lost silently: what does not come back is counted by kind, told, and above a share
refused; documents that are no text are left out only where that was asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted, flmgrow, refused
from tiny_tokenizers import make_jsonl, make_tokenizer_json

from flmgrow.trainer.data import prepare as data_prepare
from flmgrow.trainer.data.parts import Recipe
from flmgrow.trainer.data.prepare import MANIFEST, AllowedLoss
from flmgrow.trainer.data.round_trip import LostCharacters, missing
from flmgrow.trainer.data.sources import find_sources
from flmgrow.trainer.data.tokenizers import open_tokenizer

WORDS = "the thing grows in width and depth, not in error".split()


def make_tokenizer(path: Path, kind: str, **parts: Any) -> Path:
    """Write a ``tokenizer.json`` that knows the letters of WORDS, or the words; 0 ends documents.

    ``parts`` are put into the file as they are.
    """
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["</s>", "<unk>"]
    makers: dict[str, Any] = {
        "unigram": (models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace()),
        "words": (
            models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer,
            pre_tokenizers.Whitespace(),
        ),
        "no unknown": (models.BPE(), trainers.BpeTrainer, pre_tokenizers.Metaspace()),
        "bytes": (
            models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=True),
        ),
        "few bytes": (
            models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False),
        ),
    }  # fmt: skip
    model, trainer, cut = makers[kind]
    options: dict[str, Any] = {"special_tokens": special, "show_progress": False}
    if kind == "unigram":
        options |= {"unk_token": "<unk>", "vocab_size": 60}
    if kind == "bytes":
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cut
    tokenizer.train_from_iterator([" ".join(WORDS)] * 9, trainer(**options))
    path.write_text(json.dumps(json.loads(tokenizer.to_str()) | parts))
    return path


LOWER = {"normalizer": {"type": "Lowercase"}}
NFKC = {"normalizer": {"type": "NFKC"}}
DROPS = {"normalizer": {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": ""}}


@pytest.mark.parametrize(
    ("kind", "parts", "text", "wanted"),
    [
        ("bytes", {}, "汉字 é\x00\u200d 9", LostCharacters()),
        ("bytes", LOWER, "The Thing", LostCharacters(0, 2, "", "T")),
        ("bytes", NFKC, "ﬁve ①", LostCharacters(0, 2, "", "ﬁ")),
        ("bytes", DROPS, "in 2026", LostCharacters(4, 0, "2")),
        ("few bytes", {}, "the é thing", LostCharacters(1, 0, "é")),
        ("unigram", {}, "the thing", LostCharacters()),
        ("unigram", {}, "the 汉字 thing", LostCharacters(2, 0, "汉")),
        ("no unknown", {}, "the 汉字 thing", LostCharacters(2, 0, "汉")),
        ("words", {}, "the thing", LostCharacters(0, 1, "", " ")),
        ("words", {}, "the zoo", LostCharacters(3, 1, "z", " ")),
    ],
)
def test_what_does_not_come_back_is_counted(
    kind: str, parts: dict[str, Any], text: str, wanted: LostCharacters, tmp_path: Path
) -> None:
    """Also where the file names no way back, as here; a space that is put before counts nothing."""
    tokenizer = open_tokenizer(str(make_tokenizer(tmp_path / "tokenizer.json", kind, **parts)))
    assert missing(text, tokenizer.encode(text), tokenizer) == wanted


def prepared(texts: list[str], tokenizer: Path, folder: Path, *options: object) -> dict[str, Any]:
    source = make_jsonl(folder / "a.jsonl", texts)
    words = (source, folder / "out", "--tokenizer", tokenizer, "--json", *options)
    manifest: dict[str, Any] = json.loads(accepted("data", "prepare", *words).out)
    assert json.loads((folder / "out" / MANIFEST).read_text()) == manifest
    return manifest


def test_the_manifest_keeps_what_was_lost(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "t.json", "unigram", **LOWER)
    texts = ["the thing " * 200, "the Thing 汉", "in 字字"]
    manifest = prepared(texts, tokenizer, tmp_path, "--max-lost", "0.01")
    assert manifest["characters"] == sum(map(len, texts))
    assert manifest["missing"] == {
        "changed": {"count": 1, "first": "a.jsonl:2, U+0054 T"},
        "lost": {"count": 3, "first": "a.jsonl:2, U+6C49 汉"},
    }


def test_what_was_lost_is_told(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "t.json", "unigram")
    source = make_jsonl(tmp_path / "a.jsonl", ["the thing " * 200, "in 字字"])
    words = ("data", "prepare", source, tmp_path / "out", "--tokenizer", tokenizer)
    told = accepted(*words, "--max-lost", "0.01").out
    assert "lost       2 characters (0.001 of all), first a.jsonl:2, U+5B57 字" in told


def test_more_than_a_share_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "t.json", "unigram")
    make_jsonl(tmp_path / "a.jsonl", ["the thing", "the 汉字 thing"])
    words = ["data", "prepare", tmp_path / "a.jsonl", tmp_path / "out", "--tokenizer", tokenizer]
    wanted = r"a\.jsonl:2: U\+6C49 汉 does not come back from the tokenizer, nor do 2 of 21 "
    refused(3, rf"{wanted}characters \(9\.524%\), wanted at most 0\.100%", *words, place=tmp_path)
    told = flmgrow(*words).err
    assert told.splitlines()[-1].endswith("let them be lost: --max-lost 0.1")
    assert flmgrow(*words, "--max-lost", "0.1").code == 0


def test_it_is_not_left_to_the_end_of_a_large_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made until then is kept, for whoever lets it be lost."""
    monkeypatch.setattr(data_prepare, "ENOUGH", 100)
    tokenizer = make_tokenizer(tmp_path / "t.json", "unigram")
    make_jsonl(tmp_path / "a.jsonl", ["the 汉字 thing"] * 50)
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text() + "{")
    words = ["data", "prepare", tmp_path / "a.jsonl", tmp_path / "out", "--tokenizer", tokenizer]
    recipe = Recipe(open_tokenizer(str(tokenizer)), part_bytes=100)
    assert recipe.part_bytes == 100
    monkeypatch.setattr("flmgrow.cli.data.Recipe", lambda *_: recipe)
    told = flmgrow(*words)
    assert told.code == 3
    assert "a.jsonl:1: U+6C49" in told.err


def test_workers_and_parts_count_alike(tmp_path: Path) -> None:
    from flmgrow.storage.output import OutputFolder

    tokenizer = open_tokenizer(str(make_tokenizer(tmp_path / "t.json", "unigram")))
    make_jsonl(tmp_path / "a.jsonl", [f"the {'汉' * (i % 3)} thing" for i in range(60)])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    lines[20], lines[50] = '{"text": null}', '{"text": null}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = []
    for workers, size in ((1, 10**6), (1, 100), (3, 100)):
        recipe = Recipe(tokenizer, part_bytes=size)
        out = tmp_path / f"{workers}-{size}"
        with OutputFolder(out, recipe.to_json()) as folder:
            sources = find_sources([tmp_path / "a.jsonl"])
            limits = AllowedLoss(bad=2, lost=1)
            data_prepare.prepare(sources, recipe, folder, workers, lambda _: None, limits)
        found.append((out / MANIFEST).read_bytes())
    assert len(set(found)) == 1
    manifest = json.loads(found[0])
    assert manifest["missing"]["lost"] == {"count": 56, "first": "a.jsonl:2, U+6C49 汉"}
    assert manifest["bad_lines"] == {"'text' is null": {"count": 2, "first": "a.jsonl:21"}}


def test_text_that_holds_the_end_of_a_document_is_told(tmp_path: Path) -> None:
    tokenizer = make_tokenizer_json(tmp_path / "tokenizer.json")
    texts = ["a", "</s> is text", "the end", "the"]
    manifest = prepared(texts, tokenizer, tmp_path, "--eod", "the", "--max-lost", 1)
    assert manifest["missing"]["ends inside"] == {"count": 2, "first": "a.jsonl:3"}
    assert "ends inside" not in manifest["missing"]["lost"]


def test_a_tokenizer_that_gives_up_is_told(tmp_path: Path) -> None:
    """Of words, without one for those that it does not know."""
    tokenizer = make_tokenizer(tmp_path / "t.json", "words")
    content = json.loads(tokenizer.read_text())
    content["model"]["unk_token"] = "<none>"
    tokenizer.write_text(json.dumps(content))
    make_jsonl(tmp_path / "a.jsonl", ["the thing", "zoo"])
    words = ["data", "prepare", tmp_path / "a.jsonl", tmp_path / "out", "--tokenizer", tokenizer]
    refused(3, r"a\.jsonl:2: the tokenizer cannot encode it: ", *words, place=tmp_path)
    assert "1 not encoded (a.jsonl:2)" in accepted(*words, "--max-bad-lines", 1).out


BAD = {
    "{": "cut line",
    '{"text": "a"': "cut line",
    "nonsense": "not JSON",
    "[1]": "no object",
    '{"body": "a"}': "no 'text'",
    '{"text": null}': "'text' is null",
    '{"text": 5}': "'text' is of type int",
    '{"text": "\\ud83d"}': "half a surrogate",
    '{"text": "\udcff"}': "not UTF-8",
}


def make_bad(path: Path) -> Path:
    lines = ['{"text": "fine"}', *BAD, '{"text": null}', '{"text": "fine too"}']
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("line", BAD)
def test_one_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f'{{"text": "fine"}}\n{line}\n'.encode(errors="surrogateescape"))
    words = ("data", "prepare", path, tmp_path / "out", "--tokenizer", "bytes")
    refused(3, r"a\.jsonl:2: ", *words, place=tmp_path)
    told = accepted(*words, "--max-bad-lines", 1).out
    assert f"left out   1 {BAD[line]} (a.jsonl:2)" in told
    assert np.fromfile(tmp_path / "out" / "data.bin", np.uint16).tolist() == [*b"fine", 256]


def test_bad_lines_are_counted_by_kind(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    make_bad(tmp_path / "src" / "a.jsonl")
    (tmp_path / "src" / "b.txt").write_bytes(b"caf\xe9")
    words = ("data", "prepare", tmp_path / "src", tmp_path / "out", "--tokenizer", "bytes")
    told = flmgrow(*words, "--max-bad-lines", 10)
    assert told.code == 3
    assert (
        "b.txt" in told.err or "more than 10 are bad: 2 cut line (first src/a.jsonl:2)" in told.err
    )
    manifest = json.loads(accepted(*words, "--max-bad-lines", 11, "--json").out)
    assert manifest["bad_lines"] == {
        "cut line": {"count": 2, "first": "src/a.jsonl:2"},
        "not JSON": {"count": 1, "first": "src/a.jsonl:4"},
        "no object": {"count": 1, "first": "src/a.jsonl:5"},
        "no 'text'": {"count": 1, "first": "src/a.jsonl:6"},
        "'text' is null": {"count": 2, "first": "src/a.jsonl:7"},
        "'text' is of type int": {"count": 1, "first": "src/a.jsonl:8"},
        "half a surrogate": {"count": 1, "first": "src/a.jsonl:9"},
        "not UTF-8": {"count": 2, "first": "src/a.jsonl:10"},
    }
    assert manifest["documents"] == 2


def test_a_file_that_is_damaged_is_no_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    words = ("data", "prepare", tmp_path / "a.jsonl.gz", tmp_path / "out", "--tokenizer", "bytes")
    refused(3, "damaged or cut short", *words, "--max-bad-lines", 9, place=tmp_path)


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "src" / ".ipynb_checkpoints").mkdir(parents=True)
    make_jsonl(tmp_path / "src" / "B.JSONL", ["b"])
    make_jsonl(tmp_path / "src" / ".ipynb_checkpoints" / "b.jsonl", ["stale"])
    (tmp_path / "src" / "c.csv").write_bytes(b"a,b")
    words = ("data", "prepare", tmp_path / "src", tmp_path / "out", "--tokenizer", "bytes")
    told = flmgrow(*words)
    assert told.err == (
        "note: not read: 1 hidden (src/.ipynb_checkpoints); 1 in .csv (src/c.csv)\n"
    )
    assert "read       1 file (2 not)\n" in told.out
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["left_out"] == {"hidden": 1, "in .csv": 1}
    assert [source["name"] for source in manifest["sources"]] == ["src/B.JSONL"]
