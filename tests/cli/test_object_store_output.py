"""Results in an object store: complete or refused, resumed, and of one writer.

The server is real, and on loopback. What is written there must be what is written into a folder, to
the byte, whatever failed on the way; and until it is complete, every command refuses it.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, check_lines, refused, stop_after
from object_store import BUCKET, ObjectStore, one_of_each
from object_stores import STORES
from remote_results import (
    SMALL_PART,
    check_complete,
    check_incomplete,
    files_of,
    objects_of,
    served_in_small_parts,
    write,
)

from flmgrow.errors import StorageError

NUMBERS = itertools.count()


@pytest.fixture(scope="module", params=STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with served_in_small_parts(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return one_of_each(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wanted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the command of most tests writes into a folder."""
    out = tmp_path_factory.mktemp("wanted") / "out"
    accepted("reshard", sources["legacy"], out, "--tp", "2")
    return files_of(out)


@pytest.fixture(autouse=True)
def _as_it_was(remote: ObjectStore) -> Iterator[None]:
    yield
    remote.faults.clear()


@pytest.fixture
def key() -> str:
    """The key of an output: one for each test, without words that patterns of faults look for."""
    return f"{next(NUMBERS)}/out"


# --- the same bytes as in a folder


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("legacy", "reshard SRC DST --tp 2 --pp 2"),
        ("legacy", "expand SRC DST --ffn-hidden-size 24"),
        ("legacy", "export SRC DST"),
        ("torch_dist", "reshard SRC DST --tp 2 --format torch_dist"),
        ("huggingface", "import SRC DST"),
    ],
)
def test_the_result_is_that_in_a_folder_and_verifies(
    name: str,
    command: str,
    remote: ObjectStore,
    sources: dict[str, Path],
    key: str,
    tmp_path: Path,
) -> None:
    address, source = remote.address(key), sources[name]
    for out in (address, tmp_path / "out"):
        accepted(*[{"SRC": source, "DST": out}.get(word, word) for word in command.split()])
    check_complete(remote, key, files_of(tmp_path / "out"))
    assert "\nequal" in accepted("verify", source, address).out


def test_from_one_place_in_the_store_to_another(
    remote: ObjectStore, sources: dict[str, Path], wanted: dict[str, bytes], key: str
) -> None:
    source = remote.put_folder(sources["legacy"], f"{key}-from/legacy")
    outcome = accepted("reshard", source, remote.address(key), "--tp", "2")
    assert f"wrote   {remote.address(key)} " in outcome.out
    check_complete(remote, key, wanted)


def test_large_files_are_sent_in_parts_and_small_ones_whole(
    remote: ObjectStore, sources: dict[str, Path], wanted: dict[str, bytes], key: str
) -> None:
    begin = len(remote.requests)
    write(remote, sources["legacy"], key)
    sent = remote.requests[begin:]
    method, path = remote.kind("part", "mp_rank_00")
    size = len(wanted["iter_0000030/mp_rank_00/model_optim_rng.pt"])
    assert sum(re.search(f"{method}.*{path}", each) is not None for each in sent) == -(
        -size // SMALL_PART
    )
    assert sum("flmgrow.json" in each for each in sent) == 2
    check_complete(remote, key, wanted)


def test_the_same_command_again_finds_it(
    remote: ObjectStore, sources: dict[str, Path], key: str
) -> None:
    assert write(remote, sources["legacy"], key).out.startswith("wrote")
    begin = len(remote.requests)
    assert write(remote, sources["legacy"], key).out.startswith("found")
    assert not any(re.match("PUT|POST", each) for each in remote.requests[begin:])


def test_shards_alone_and_then_the_rest(
    remote: ObjectStore,
    sources: dict[str, Path],
    wanted: dict[str, bytes],
    key: str,
    tmp_path: Path,
) -> None:
    told = write(remote, sources["legacy"], key, "--only-shards", "1")
    assert f"in {remote.address(key)}" in told.out
    check_incomplete(remote, key, tmp_path)
    assert write(remote, sources["legacy"], key).code == 0
    check_complete(remote, key, wanted)


# --- what is there already


def test_what_is_there_is_left_alone(
    remote: ObjectStore, sources: dict[str, Path], key: str, tmp_path: Path
) -> None:
    remote.put(f"{key}/notes.txt", b"mine")
    command = ("reshard", sources["legacy"], remote.address(key), "--tp", "2")
    refused(5, f"{remote.address(key)}: already exists", *command, place=tmp_path)
    assert objects_of(remote, key) == {"notes.txt": b"mine"}


def test_another_plan_is_refused_and_restart_drops_it(
    remote: ObjectStore,
    sources: dict[str, Path],
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in(monkeypatch, 1, lambda: write(remote, sources["legacy"], key))
    before = objects_of(remote, key)
    other = ("reshard", sources["legacy"], remote.address(key), "--tp", "4")
    refused(5, "half-done run of another plan.*--restart", *other, place=tmp_path)
    assert objects_of(remote, key) == before
    accepted(*other, "--restart")
    accepted("reshard", sources["legacy"], tmp_path / "out", "--tp", "4")
    check_complete(remote, key, files_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("reshard SRC STORE --tp 2", "is a (bucket|container), wanted a folder in it"),
        ("reshard SRC SCHEME:// --tp 2", "names no bucket"),
        ("data prepare SRC STORE/x", "is in an object store, wanted a folder"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: str, found: str, remote: ObjectStore, sources: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a")
    source = tmp_path / "text.txt" if command.startswith("data") else sources["legacy"]
    scheme = remote.SCHEME
    command = command.replace("STORE", f"{scheme}://{BUCKET}").replace("SCHEME", scheme)
    words = [source if word == "SRC" else word for word in command.split()]
    if command.startswith("data"):
        words += ["--tokenizer", "bytes"]
    refused(2, found, *words, place=tmp_path)
    assert remote.keys("x/") == []


def test_an_output_inside_its_source_is_refused(
    remote: ObjectStore, sources: dict[str, Path], key: str, tmp_path: Path
) -> None:
    source = remote.put_folder(sources["legacy"], key)
    refused(2, "lies inside", "reshard", source, f"{source}/out", "--tp", "2", place=tmp_path)


# --- interrupted and resumed


def stop_in(patch: pytest.MonkeyPatch, files: int, run: Any) -> None:
    def stop() -> None:
        raise StorageError("stopped here")

    with patch.context() as within:
        stop_after(files, within, stop)
        assert "stopped here" in run().err


def test_a_stopped_run_is_refused_and_resumes(
    remote: ObjectStore,
    sources: dict[str, Path],
    wanted: dict[str, bytes],
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in(monkeypatch, 1, lambda: write(remote, sources["legacy"], key))
    assert ".flmgrow/lease" not in objects_of(remote, key)
    check_incomplete(remote, key, tmp_path)
    begin = len(remote.requests)
    assert write(remote, sources["legacy"], key).code == 0
    assert not any("mp_rank_00" in each for each in remote.requests[begin:])
    check_complete(remote, key, wanted)


def test_a_run_that_failed_at_its_first_file_leaves_nothing(
    remote: ObjectStore,
    sources: dict[str, Path],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in(monkeypatch, 0, lambda: write(remote, sources["legacy"], key))
    assert objects_of(remote, key) == {}


@pytest.mark.parametrize("damage", ["replaced", "deleted", "journal"])
def test_a_finished_file_that_is_not_as_it_was_is_written_again(
    damage: str,
    remote: ObjectStore,
    sources: dict[str, Path],
    wanted: dict[str, bytes],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in(monkeypatch, 1, lambda: write(remote, sources["legacy"], key))
    file = f"{key}/iter_0000030/mp_rank_00/model_optim_rng.pt"
    if damage == "replaced":
        remote.put(file, bytes(len(remote.get(file))))
    elif damage == "deleted":
        remote.delete(file)
    else:
        (line,) = remote.keys(f"{key}/.flmgrow/journal/")
        remote.put(line, remote.get(line)[:-5] + b"oops\n")
    assert write(remote, sources["legacy"], key).code == 0
    check_complete(remote, key, wanted)


@pytest.mark.parametrize("what", ["replaced", "deleted"])
def test_a_file_that_changes_before_the_end_is_noticed(
    what: str,
    remote: ObjectStore,
    sources: dict[str, Path],
    wanted: dict[str, bytes],
    key: str,
    tmp_path: Path,
) -> None:
    file = f"{key}/iter_0000030/mp_rank_00/model_optim_rng.pt"

    def change() -> None:
        remote.put(file, b"another") if what == "replaced" else remote.delete(file)

    remote.fail("HEAD", "mp_rank_01", before=change)
    outcome = write(remote, sources["legacy"], key)
    assert outcome.code == 4
    check_lines(outcome.err, f"mp_rank_00.*{'is not what was' if what == 'replaced' else 'vanish'}")
    check_incomplete(remote, key, tmp_path)
    assert write(remote, sources["legacy"], key).code == 0
    check_complete(remote, key, wanted)


def test_strays_of_a_half_done_run_go(
    remote: ObjectStore,
    sources: dict[str, Path],
    wanted: dict[str, bytes],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in(monkeypatch, 1, lambda: write(remote, sources["legacy"], key))
    remote.put(f"{key}/iter_0000030/mp_rank_07/model_optim_rng.pt", b"of another plan")
    assert write(remote, sources["legacy"], key).code == 0
    check_complete(remote, key, wanted)
