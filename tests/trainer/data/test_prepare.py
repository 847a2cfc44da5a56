"""The tokens of a corpus depend on nothing but the corpus: not on threads, nor on being killed."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from commands import accepted, check_lines, flmgrow, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import make_jsonl, make_ranks, make_tokenizer_json

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.storage.output import OutputFolder
from flmgrow.trainer.data import parts as data_parts
from flmgrow.trainer.data import prepare as data_prepare
from flmgrow.trainer.data.indexed import read_index
from flmgrow.trainer.data.parts import Recipe
from flmgrow.trainer.data.prepare import MANIFEST
from flmgrow.trainer.data.sources import Sources, find_sources
from flmgrow.trainer.data.tokenizer import Tokenizer, Tokens
from flmgrow.trainer.data.tokenizers import ByteTokenizer, open_tokenizer

TEXTS = [f"document {i}: " + "x" * (i * 7 % 41) for i in range(60)]
FILES = ["data.bin", "data.idx", MANIFEST]


class Killed(BaseException):
    """Stands for the end of the process."""


class CountingTokenizer(ByteTokenizer):
    """Counts the texts it is given, and stops the run after some of them."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._most = most

    def encode(self, text: str) -> Tokens:
        if len(self.seen) >= self._most:
            raise Killed
        self.seen.append(text)
        return super().encode(text)


def make(
    sources: Sources, out: Path, tokenizer: Tokenizer, workers: int = 1, size: int = 100
) -> dict[str, Any]:
    recipe = Recipe(tokenizer, part_bytes=size)
    with OutputFolder(out, recipe.to_json()) as folder:
        return data_prepare.prepare(sources, recipe, folder, workers, lambda _: None)


def corpus(out: Path) -> list[bytes]:
    """The documents of a corpus of bytes, each with its end."""
    index = read_index(out / "data.idx")
    tokens = np.fromfile(out / "data.bin", index.dtype)
    ends = np.cumsum(index.lengths)
    assert ends[-1] == len(tokens)
    documents = np.split(tokens, ends[:-1])
    assert all(document[-1] == 256 for document in documents)
    return [bytes(document[:-1].astype(np.uint8)) for document in documents]


def contents(out: Path) -> list[bytes]:
    assert sorted(path.name for path in out.iterdir()) == FILES
    return [(out / name).read_bytes() for name in FILES]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return find_sources([make_jsonl(tmp_path / "a.jsonl", TEXTS)])


def test_documents_are_there_in_order(sources: Sources, tmp_path: Path) -> None:
    manifest = make(sources, tmp_path / "out", ByteTokenizer())
    assert corpus(tmp_path / "out") == [text.encode() for text in TEXTS]
    assert manifest["documents"] == len(TEXTS)
    assert manifest["tokens"] == sum(len(text) + 1 for text in TEXTS)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == manifest


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=40).filter(any), size=st.integers(1, 300))
def test_parts_do_not_change_a_byte(
    texts: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    sources = find_sources([make_jsonl(folder / "a.jsonl", texts)])
    make(sources, folder / "one", ByteTokenizer(), size=10**6)
    make(sources, folder / "other", ByteTokenizer(), size=size)
    assert contents(folder / "one") == contents(folder / "other")
    assert corpus(folder / "one") == [text.encode() for text in texts if text]


@pytest.mark.parametrize("name", ["bytes", "tiny.tiktoken", "tokenizer.json"])
def test_workers_do_not_change_a_byte(name: str, sources: Sources, tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    make_ranks(tmp_path / "tiny.tiktoken")
    make_tokenizer_json(tmp_path / "tokenizer.json")
    tokenizer = open_tokenizer(name if name == "bytes" else str(tmp_path / name))
    for workers in (1, 3):
        make(sources, tmp_path / str(workers), tokenizer, workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("after", [0, 1, 17, 59])
def test_a_run_that_was_killed_goes_on(after: int, sources: Sources, tmp_path: Path) -> None:
    make(sources, tmp_path / "whole", ByteTokenizer())
    with pytest.raises(Killed):
        make(sources, tmp_path / "out", CountingTokenizer(after))
    assert not (tmp_path / "out").exists()
    rest = CountingTokenizer()
    make(sources, tmp_path / "out", rest)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # What was finished is not made again; a part may hold a few documents that are.
    assert len(TEXTS) - after <= len(rest.seen) <= len(TEXTS) - after + 4


class Stopping:
    """A place that ends the process at one of the calls of the run's end."""

    def __init__(self, folder: OutputFolder, call: int) -> None:
        self._folder = folder
        self._calls = call

    def __getattr__(self, name: str) -> Any:
        if name in ("drop", "commit", "add_small", "file"):
            self._calls -= 1
            if self._calls < 0:
                raise Killed
        return getattr(self._folder, name)


def test_a_run_may_be_killed_at_any_call(sources: Sources, tmp_path: Path) -> None:
    recipe = Recipe(ByteTokenizer(), part_bytes=600)
    make(sources, tmp_path / "whole", ByteTokenizer(), size=600)
    for call in range(100):
        out = tmp_path / f"out{call}"
        try:
            with OutputFolder(out, recipe.to_json()) as folder:
                place: Any = Stopping(folder, call)
                data_prepare.prepare(sources, recipe, place, 1, lambda _: None)
            break
        except Killed:
            assert not out.exists()
        make(sources, out, ByteTokenizer(), size=600)
        assert contents(out) == contents(tmp_path / "whole")
    assert 10 < call < 99


def test_text_that_changed_meanwhile_is_made_anew(tmp_path: Path) -> None:
    path = make_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(Killed):
        make(find_sources([path]), tmp_path / "out", CountingTokenizer(40))
    changed = ["D" + TEXTS[0][1:], *TEXTS[1:]]
    again = CountingTokenizer()
    make(find_sources([make_jsonl(path, changed)]), tmp_path / "out", again)
    assert corpus(tmp_path / "out") == [text.encode() for text in changed]
    assert changed[0] in again.seen
    assert changed[30] not in again.seen


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_in_the_corpus_is_told(workers: int, tmp_path: Path) -> None:
    path = make_jsonl(tmp_path / "a.jsonl", TEXTS)
    lines = path.read_text().splitlines()
    lines[30], lines[50] = '{"text": "\\ud800"}', "{"
    path.write_text("\n".join(lines))
    with pytest.raises(BadDataError, match=r"a\.jsonl:31: not a text: .*surrogate"):
        make(find_sources([path]), tmp_path / "out", ByteTokenizer(), workers)
    lines[30], lines[50] = (json.dumps({"text": text}) for text in (TEXTS[30], TEXTS[50]))
    path.write_text("\n".join(lines))
    rest = CountingTokenizer()
    make(find_sources([path]), tmp_path / "out", rest)
    assert len(rest.seen) < 40  # what came before the mistake was kept


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_reading_does_not_overtake(workers: int, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text * 500}) for text in TEXTS]
    lines[30] = "{"
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-4])
    with pytest.raises(BadDataError, match=r"a\.jsonl\.gz:31: not JSON"):
        make(find_sources([tmp_path / "a.jsonl.gz"]), tmp_path / "out", ByteTokenizer(), workers)


def test_memory_does_not_follow_the_corpus(sources: Sources, tmp_path: Path) -> None:
    """Text is read only as far as parts are written."""
    ahead = most = 0
    texts_of: Callable[..., Any] = data_prepare._texts
    write: Callable[..., Any] = data_parts.write_part

    def counted(*arguments: Any) -> Any:
        nonlocal ahead, most
        for text in texts_of(*arguments):
            ahead += 1
            most = max(most, ahead)
            yield text

    def written(*arguments: Any) -> Any:
        nonlocal ahead
        ahead -= 1
        return write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prepare, "_texts", counted)
        patch.setattr(data_prepare, "write_part", written)
        make(sources, tmp_path / "out", ByteTokenizer(), workers=2, size=1)
    assert most == 2 + 2


class Dying(ByteTokenizer):
    """Ends its process, as a lack of memory does."""

    def encode(self, text: str) -> Tokens:
        os._exit(9)


@pytest.mark.slow
def test_a_worker_that_dies_is_told(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a worker process died") as refusal:
        make(sources, tmp_path / "out", Dying(), workers=2)
    assert "fewer workers" in refusal.value.hint


class TestCommand:
    def test_files_and_folders_become_one_corpus(self, tmp_path: Path) -> None:
        texts = tmp_path / "texts"
        texts.mkdir()
        make_jsonl(texts / "b.jsonl", ["b", "", "c"], key="body")
        (texts / "a.txt").write_text("a\n\na")
        (texts / "empty.txt").write_text("")
        out = tmp_path / "out"
        options = ["--tokenizer", "bytes", "--jsonl-key", "body", "--workers", 2]
        told = accepted("data", "prepare", texts, out, *options)
        assert corpus(out) == [b"a\n\na", b"b", b"c"]
        assert "9 tokens in 3 documents (1 without text left out)" in told.out
        assert str(tmp_path) not in (out / MANIFEST).read_text()

    def test_ends_of_documents_may_be_left_out(self, tmp_path: Path) -> None:
        path = make_jsonl(tmp_path / "a.jsonl", ["ab", "c"])
        options = ["--tokenizer", "bytes", "--no-append-eod", "--json"]
        manifest = json.loads(accepted("data", "prepare", path, tmp_path / "out", *options).out)
        assert manifest["tokens"] == 3
        assert not manifest["append_eod"]
        assert np.fromfile(tmp_path / "out" / "data.bin", np.uint16).tolist() == [97, 98, 99]

    def test_refusals_leave_nothing(self, tmp_path: Path) -> None:
        make_jsonl(tmp_path / "a.jsonl", ["x"])
        (tmp_path / "none.jsonl").write_text("\n")
        (tmp_path / "bad.jsonl").write_text("\n{\n")
        for code, pattern, words in (
            (2, "a.md: no such file", "a.md out --tokenizer bytes"),
            (2, "Missing option '--tokenizer'", "a.jsonl out"),
            (2, "--tokenizer word: unknown", "a.jsonl out --tokenizer word"),
            (2, "--eod 300: no such token", "a.jsonl out --tokenizer bytes --eod 300"),
            (3, "none.jsonl: no document", "none.jsonl out --tokenizer bytes"),
            (3, "bad.jsonl:2: not JSON", "bad.jsonl out --tokenizer bytes"),
            (3, "a.jsonl:1: has text", "a.jsonl out --tokenizer bytes --jsonl-key body"),
            (5, "already exists", "a.jsonl a.jsonl --tokenizer bytes"),
        ):
            paths = [tmp_path / w if "." in w or w == "out" else w for w in words.split()]
            refused(code, pattern, "data", "prepare", *paths, place=tmp_path)

    def test_an_output_inside_the_source_is_refused(self, tmp_path: Path) -> None:
        make_jsonl(tmp_path / "a.jsonl", ["x"])
        words = ("data", "prepare", tmp_path, tmp_path / "out", "--tokenizer", "bytes")
        refused(2, "lies inside", *words, place=tmp_path)

    def test_another_recipe_does_not_mix_in(self, tmp_path: Path) -> None:
        path = make_jsonl(tmp_path / "a.jsonl", ["x" * 100] * 3)
        recipe = Recipe(ByteTokenizer())
        plan = {**recipe.to_json(), "sources": ["a.jsonl"]}
        with OutputFolder(tmp_path / "out", plan) as folder:
            folder.add_small("parts/00000000-0", b"x")
        words = ("data", "prepare", path, tmp_path / "out", "--tokenizer", "bytes")
        other = flmgrow(*words, "--no-append-eod")
        assert other.code == 5
        check_lines(other.err, "append_eod: true there, false here")
        assert flmgrow(*words).code == 0
        assert corpus(tmp_path / "out") == [b"x" * 100] * 3


def children(process: int) -> list[int]:
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def wait_for_end(processes: list[int]) -> None:
    """Return when all have ended; where nobody asks for their codes they stay as zombies."""
    deadline = time.monotonic() + 120
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def command_for(path: Path) -> list[str]:
    """The command on ``path``, but for where to."""
    prepare = ["data", "prepare", str(path), "--tokenizer", "bytes"]
    return [sys.executable, "-m", "flmgrow", *prepare]


@pytest.mark.slow
def test_the_real_thing_may_be_killed(tmp_path: Path) -> None:
    path = make_jsonl(tmp_path / "a.jsonl", ["abcdefgh" * 2000] * 4000)
    command = command_for(path)
    out, whole = tmp_path / "out", tmp_path / "whole"
    parts = tmp_path / ".out.flmgrow" / "data" / "parts"
    process = subprocess.Popen([*command, str(out), "--workers", "2"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (parts.is_dir() and len(list(parts.iterdir())) > 2):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run([*command, str(out), "--workers", "2"], check=True, capture_output=True)
    subprocess.run([*command, str(whole), "--workers", "1"], check=True, capture_output=True)
    assert contents(out) == contents(whole)
    wait_for_end(workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_ends_in_two_lines(kind: int, code: int, tmp_path: Path) -> None:
    """The whole group gets the signal, as from a keyboard, while workers start."""
    path = make_jsonl(tmp_path / "a.jsonl", ["abcdefgh" * 2000] * 4000)
    command = command_for(path)
    process = subprocess.Popen(
        [*command, str(tmp_path / "out"), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(workers := children(process.pid)) < 2:  # the first is Python's own helper
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.2)
    os.killpg(process.pid, kind)
    told = process.communicate(timeout=900)[1]
    assert process.returncode == code
    assert told.splitlines() == ["error: interrupted", "hint: the same command resumes"]
    wait_for_end(workers)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    for content, message in ((b"", "not an index"), (b"MMIDIDX\0\0" + b"\2" * 40, "version")):
        (tmp_path / "data.idx").write_bytes(content)
        with pytest.raises(FlmgrowError, match=message):
            read_index(tmp_path / "data.idx")
