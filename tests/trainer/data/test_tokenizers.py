"""What is encoded must come back, no text may look like the end of a document, and files are
checked."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import cl100k_ranks, make_ranks, make_tokenizer_json

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.trainer.data.tiktoken_tokenizer import read_ranks
from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer
from flmgrow.trainer.stage.section import located

CL100K_KEY = hashlib.sha1(
    b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
).hexdigest()

TEXTS = [
    "",
    "the thing in 1234567 <|endoftext|> </s>",
    " \n\n\t x",
    "汉字, ünïcode, \U0001f621\U0001f608",
    "\x00\x7f",
]


def every_byte(folder: Path) -> str:
    return "bytes"


def ranks(folder: Path) -> str:
    pytest.importorskip("tiktoken")
    return str(make_ranks(folder / "tiny.tiktoken"))


def words(folder: Path) -> str:
    return str(make_tokenizer_json(folder / "tokenizer.json"))


KINDS = [every_byte, ranks, words]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return open_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.eod not in tokens
    assert tokens.dtype.itemsize == 4
    assert not len(tokens) or 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size


@given(text=st.text())
def test_no_text_ends_a_document(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.eod not in tokens
    assert tokenizer.decode([*tokens, tokenizer.eod]) == text


def test_half_a_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_a_tokenizer_is_known_by_its_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    one = open_tokenizer(str(make_ranks(tmp_path / "a.tiktoken")))
    same = open_tokenizer(f"tiktoken:{make_ranks(tmp_path / 'b.tiktoken')}")
    lines = (tmp_path / "a.tiktoken").read_text().replace("aW4=", "aW8=")  # "in" becomes "io"
    (tmp_path / "c.tiktoken").write_text(lines)
    other = open_tokenizer(str(tmp_path / "c.tiktoken"))
    assert one.identity == same.identity != other.identity
    assert one.identity == one.unique_identifiers
    assert (one.vocab_size, one.eod) == (265, 255)


def test_a_file_written_anew_is_the_same_tokenizer(tmp_path: Path) -> None:
    """Of other white space and other order; the identity of earlier versions is of its bytes."""
    path = make_tokenizer_json(tmp_path / "a.json")
    content = json.loads(path.read_text())
    anew = tmp_path / "b.json"
    anew.write_text(json.dumps(dict(reversed(content.items())), indent=1))
    one, same = open_tokenizer(str(path)), open_tokenizer(str(anew))
    assert one.identity == same.identity
    assert one.earlier != same.earlier
    assert one.earlier["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    content["model"]["vocab"]["the"], content["model"]["vocab"]["th"] = 257, 258
    anew.write_text(json.dumps(content))
    assert open_tokenizer(str(anew)).identity != one.identity


def test_a_copy_in_another_process_is_the_same(tokenizer: Tokenizer) -> None:
    """Names of special tokens stay text there: the library forgets that it was told so."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    for text in TEXTS:
        assert copy.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.eod not in copy.encode("</s> <|endoftext|>")


def test_what_a_file_says_of_batches_and_chance_changes_no_token(tmp_path: Path) -> None:
    """A text longer than its truncation keeps its end, short ones get no padding."""
    path = make_tokenizer_json(tmp_path / "tokenizer.json")
    plain = open_tokenizer(str(path))
    content = json.loads(path.read_text())
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    content["truncation"] = cut
    content["padding"] = {**filled, "pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"}
    content["model"]["dropout"] = 0.9
    path.write_text(json.dumps(content))
    other = open_tokenizer(str(path))
    assert other.identity == plain.identity
    for each in (other, pickle.loads(pickle.dumps(other))):
        assert each.encode("the thing, the").tolist() == plain.encode("the thing, the").tolist()


@pytest.mark.parametrize(
    ("kind", "eod", "wanted", "size"),
    [
        (every_byte, "0", 0, 257),
        (ranks, "300", 300, 301),
        (ranks, "7", 7, 265),
        (words, "the", 258, 259),
    ],
)
def test_another_end_may_be_chosen(
    kind: Callable[[Path], str], eod: str, wanted: int, size: int, tmp_path: Path
) -> None:
    tokenizer = open_tokenizer(kind(tmp_path), eod)
    assert (tokenizer.eod, tokenizer.vocab_size) == (wanted, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eod", ["99999", "-1", "<none>"])
def test_an_end_that_is_no_token_is_refused(
    kind: Callable[[Path], str], eod: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such token"):
        open_tokenizer(kind(tmp_path), eod)


def test_an_end_that_is_not_named_must_be_chosen(tmp_path: Path) -> None:
    path = str(make_tokenizer_json(tmp_path / "tokenizer.json", end="<stop>"))
    with pytest.raises(UsageError, match="names no end") as refusal:
        open_tokenizer(path)
    assert "--eod" in refusal.value.hint
    assert open_tokenizer(path, "<stop>").eod == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 tokens"),
        ("YQ== 0\nnonsense\n", r"tiny.tiktoken:2: wanted a token"),
        ("YQ== 0\n**** 1\n", r"tiny.tiktoken:2: wanted a token"),
        ("YQ== 0\nYg== 2\n", "every rank from 0 once"),
        ("YQ== 0\n", "no token for byte 0x00"),
    ],
)
def test_damaged_ranks_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.tiktoken"
    path.write_text(content)
    with pytest.raises(BadDataError, match=message):
        read_ranks(path)


@pytest.mark.parametrize("name", ["words", "tiktoken:", "missing.json", "missing.tiktoken"])
def test_unknown_tokenizers_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="tokenizer "):
        open_tokenizer(name)


def test_a_folder_means_the_tokenizer_in_it(tmp_path: Path) -> None:
    """As Hugging Face keeps one; a folder called ``bytes`` changes nothing."""
    for name in ("model", "bytes"):
        (tmp_path / name).mkdir()
        make_tokenizer_json(tmp_path / name / "tokenizer.json")
    found = open_tokenizer(located("model", tmp_path))
    assert found.identity == open_tokenizer(str(tmp_path / "model" / "tokenizer.json")).identity
    assert located("bytes", tmp_path) == "bytes"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"tokenizer .*empty: unknown"):
        open_tokenizer(located("empty", tmp_path))


def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadDataError, match=r"not a tokenizer\.json"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


def test_ranks_that_cannot_be_fetched_end_in_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")

    def no_network(name: str) -> None:
        raise ConnectionError("a long tale\nof many lines")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(FlmgrowError, match="could not fetch its ranks: ConnectionError") as refusal:
        open_tokenizer("tiktoken:cl100k_base")
    assert "TIKTOKEN_CACHE_DIR" in refusal.value.hint
    assert "cl100k_base.tiktoken" in refusal.value.hint


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    with pytest.raises(UsageError, match="needs the package tiktoken") as refusal:
        open_tokenizer(str(make_ranks(tmp_path / "tiny.tiktoken")))
    assert "flmgrow[train]" in refusal.value.hint


def test_cl100k_has_the_papers_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    path = cl100k_ranks()
    shutil.copy(path, tmp_path / CL100K_KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    named, filed = open_tokenizer("tiktoken:cl100k_base"), open_tokenizer(str(path))
    assert named.identity == filed.identity
    assert (filed.vocab_size, filed.eod) == (100_256, 187)
    official = tiktoken.get_encoding("cl100k_base")
    assert official.decode_single_token_bytes(filed.eod) == b"\xff"
    for text in [*TEXTS, "can't  stop\r\n\r\n  it's 12345 \u3000汉字。\U0001f621"]:
        assert filed.encode(text).tolist() == official.encode_ordinary(text)
