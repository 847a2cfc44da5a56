"""Checkpoints in an object store as sources: every command reads them as it reads folders.

The server is real, and on loopback. What a command makes of a source in the store must be what it
makes of the same files in a folder, to the byte; and whatever the server does, the command is right
in the end, or ends in one line that shows no secret.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, flmgrow, refused
from growing import all_files
from object_store import BUCKET, SECRET, ObjectStore, one_of_each, served
from object_stores import STORES
from ranks_of import ended, start

import flmgrow as library
from flmgrow.storage.remote import ranges

FORMATS = ("legacy", "torch_dist", "huggingface")


@pytest.fixture(scope="module", params=STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, served(patch, request.param) as server:
        yield server


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return one_of_each(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def addresses(remote: ObjectStore, folders: dict[str, Path]) -> dict[str, str]:
    return {
        name: remote.put_folder(folder, f"sources/{folder.name}")
        for name, folder in folders.items()
    }


@pytest.fixture(autouse=True)
def _as_it_was(remote: ObjectStore) -> Iterator[None]:
    yield
    remote.faults.clear()


@pytest.fixture
def legacy(remote: ObjectStore, folders: dict[str, Path], request: Any) -> str:
    """The address of a checkpoint that a test may change."""
    name = re.sub(r"\W+", "-", request.node.name)
    return remote.put_folder(folders["legacy"], f"{name}/ckpt")


def same_bytes(first: Path, second: Path) -> bool:
    return all_files(first) == all_files(second)


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_tells_the_same(
    name: str, folders: dict[str, Path], addresses: dict[str, str]
) -> None:
    there = accepted("inspect", addresses[name], "--tensors", "--health").out
    here = accepted("inspect", folders[name], "--tensors", "--health").out
    assert addresses[name] in there
    assert there.splitlines()[1:] == here.splitlines()[1:]


@pytest.mark.parametrize("name", FORMATS)
def test_integrity_tells_the_same(
    name: str, folders: dict[str, Path], addresses: dict[str, str]
) -> None:
    there = flmgrow("verify", "--integrity", addresses[name])
    here = flmgrow("verify", "--integrity", folders[name])
    assert (there.code, there.out, there.err) == (here.code, here.out, here.err)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("legacy", "reshard SRC DST --tp 2 --pp 2"),
        ("legacy", "expand SRC DST --ffn-hidden-size 24"),
        ("legacy", "export SRC DST"),
        ("torch_dist", "reshard SRC DST --tp 2"),
        ("huggingface", "import SRC DST --format torch_dist"),
    ],
)
def test_writes_the_same_and_verifies(
    name: str, command: str, folders: dict[str, Path], addresses: dict[str, str], tmp_path: Path
) -> None:
    there, here = tmp_path / "there" / "out", tmp_path / "here" / "out"
    for source, out in ((addresses[name], there), (folders[name], here)):
        out.parent.mkdir()
        words = {"SRC": source, "DST": out}
        accepted(*[words.get(word, word) for word in command.split()])
    assert same_bytes(there, here)
    found, wanted = (
        flmgrow("verify", addresses[name], there),
        flmgrow("verify", folders[name], here),
    )
    assert (found.code, found.out) == (wanted.code, wanted.out)
    assert "\nequal" in found.out


def test_blocks_smaller_than_any_array_make_no_difference(
    folders: dict[str, Path],
    addresses: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "BLOCK", 1000)
    monkeypatch.setattr(ranges, "MOST_BLOCKS", 2)
    (tmp_path / "here").mkdir()
    accepted("reshard", addresses["legacy"], tmp_path / "legacy", "--tp", "2", "--workers", "4")
    accepted("reshard", folders["legacy"], tmp_path / "here" / "legacy", "--tp", "2")
    assert same_bytes(tmp_path / "legacy", tmp_path / "here" / "legacy")


def test_small_ranges_are_read_in_few_requests(
    remote: ObjectStore, addresses: dict[str, str], tmp_path: Path
) -> None:
    begin = len(remote.requests)
    accepted("reshard", addresses["legacy"], tmp_path / "out", "--tp", "2")
    assert len(remote.requests) - begin < 15


def test_other_iterations_are_not_listed(
    remote: ObjectStore, legacy: str, folders: dict[str, Path]
) -> None:
    key = remote.key_of(legacy)
    for iteration in (10, 20):
        remote.put_folder(folders["legacy"] / "iter_0000030", f"{key}/iter_{iteration:07d}")
    begin = len(remote.requests)
    accepted("inspect", legacy)
    assert not any("iter_0000010" in each for each in remote.requests[begin:])
    assert "iteration is 30" in flmgrow("inspect", legacy, "--iteration", "10").err


def test_an_iteration_is_found_by_the_root_and_by_itself(addresses: dict[str, str]) -> None:
    root = addresses["legacy"]
    whole = accepted("inspect", root).out
    assert accepted("inspect", f"{root}/iter_0000030").out == whole
    assert accepted("inspect", f"{root}/", "--iteration", "30").out == whole


def test_a_receipt_goes_into_a_result_in_the_store(
    remote: ObjectStore, folders: dict[str, Path], addresses: dict[str, str], tmp_path: Path
) -> None:
    accepted("reshard", folders["legacy"], tmp_path / "out", "--tp", "2")
    result = remote.put_folder(tmp_path / "out", "results/receipt")
    accepted("verify", addresses["legacy"], result)
    assert b'"receipt"' in remote.get("results/receipt/flmgrow.json")
    assert "equal" in accepted("inspect", result).out


def test_a_receipt_does_not_replace_another_manifest(
    remote: ObjectStore, folders: dict[str, Path], addresses: dict[str, str], tmp_path: Path
) -> None:
    accepted("reshard", folders["legacy"], tmp_path / "out", "--tp", "2")
    result, key = remote.put_folder(tmp_path / "out", "results/lost"), "results/lost/flmgrow.json"
    remote.fail("PUT", "flmgrow.json", before=lambda: remote.put(key, b"another"))
    outcome = flmgrow("verify", addresses["legacy"], result)
    assert (outcome.code, outcome.err.count("\n")) == (3, 2)
    assert f"{result}/flmgrow.json: changed" in outcome.err
    assert remote.get(key) == b"another"


# --- what is wrong


@pytest.mark.parametrize(
    ("address", "code", "found"),
    [
        (f"STORE://{BUCKET}/nothing", 3, "STORE://checkpoints/nothing: does not exist"),
        (f"STORE://{BUCKET}/sourc", 3, "STORE://checkpoints/sourc: does not exist"),
        (
            "STORE://other/ckpt",
            4,
            "STORE://other/ckpt: listing failed: there is no such (bucket|container)",
        ),
        (f"STORE://{BUCKET}/sources", 3, "holds checkpoints in folders of its own"),
        (f"STORE://{BUCKET}/sources/huggingface/config.json", 3, "config.json"),
        ("STORE://", 2, "names no bucket.*STORE://(BUCKET|CONTAINER)/KEY"),
        ("STORE://x", 2, "STORE://x: names no bucket.*STORE://(BUCKET|CONTAINER)/KEY"),
        (f"STORE://{BUCKET}/a/../b", 2, "has '..' in it"),
        (f"STORE://user:{SECRET}@{BUCKET}/a", 2, r"STORE://\*\*\*: holds a user's name or a key"),
    ],
)
def test_a_wrong_address_is_one_line(
    address: str,
    code: int,
    found: str,
    remote: ObjectStore,
    addresses: dict[str, str],
    tmp_path: Path,
) -> None:
    address, found = (text.replace("STORE", remote.SCHEME) for text in (address, found))
    outcome = refused(code, found, "inspect", address, place=tmp_path)
    assert SECRET not in outcome.err


def test_without_obstore_the_extra_is_named(
    addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    pattern = r"package obstore is not installed\nhint: pip install 'flmgrow\[object-store\]'"
    refused(2, pattern, "inspect", addresses["legacy"], place=tmp_path)


@pytest.mark.parametrize("key", ["flmgrow.pt/below", "a//b"])
def test_keys_that_are_no_paths_are_one_line(
    key: str, remote: ObjectStore, folders: dict[str, Path], tmp_path: Path
) -> None:
    name = f"odd-{len(key)}"
    address = remote.put_folder(folders["huggingface"], name)
    remote.put(f"{name}/flmgrow.pt", b"1")
    remote.put(f"{name}/{key}", b"2")
    outcome = flmgrow("verify", "--integrity", address)
    assert outcome.code in (3, 4)
    assert re.search(r"others lie below it|empty or relative parts", outcome.err)
    remote.delete(f"{name}/{key}") if "//" not in key else None


def test_empty_objects_that_stand_for_folders_are_none(
    remote: ObjectStore, folders: dict[str, Path]
) -> None:
    address = remote.put_folder(folders["legacy"], "with-folders")
    remote.put("with-folders/", b"")
    remote.put("with-folders/iter_0000030/", b"")
    accepted("inspect", address)


# --- folders that are being written


def test_a_folder_without_its_marker_is_refused(
    remote: ObjectStore, legacy: str, tmp_path: Path
) -> None:
    key = remote.key_of(legacy)
    remote.put(f"{key}/.flmgrow/plan.json", b"{}")
    for address in (legacy, f"{legacy}/iter_0000030"):
        pattern = rf"{legacy}: is not complete.*hint: run the command that writes it again"
        refused(3, pattern, "inspect", address, place=tmp_path)
    remote.put(f"{key}/.flmgrow/complete", b"{}")
    for address in (legacy, f"{legacy}/iter_0000030"):
        assert ".flmgrow" not in accepted("verify", "--integrity", address).out


def test_a_copy_of_a_half_done_folder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["legacy"], copy)
    (copy / ".flmgrow").mkdir()
    (copy / ".flmgrow" / "plan.json").write_text("{}")
    for path in (copy, copy / "iter_0000030"):
        refused(3, f"{copy}: is not complete", "inspect", path, place=tmp_path)
    (copy / ".flmgrow" / "complete").write_text("{}")
    assert ".flmgrow" not in accepted("verify", "--integrity", copy).out


@pytest.mark.slow
def test_ranks_share_a_source_in_the_store(
    addresses: dict[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    source, there, here = addresses["legacy"], tmp_path / "out", tmp_path / "here" / "out"
    here.parent.mkdir()
    runs = [start(rank, 2, ("reshard", source, there, "--tp", "2")) for rank in range(2)]
    assert [code for code, _, _ in ended(runs)] == [0, 0]
    accepted("reshard", folders["legacy"], here, "--tp", "2")
    assert same_bytes(there, here)
    scratch = ("--scratch", tmp_path)
    runs = [start(rank, 2, ("verify", source, there, *scratch)) for rank in range(2)]
    (code, out, err), (other, _, _) = ended(runs)
    assert (code, other) == (0, 0), err
    assert "\nequal" in out


def test_from_python(
    remote: ObjectStore, addresses: dict[str, str], folders: dict[str, Path]
) -> None:
    out = remote.address("python/out")
    with library.open(addresses["legacy"]) as there, library.open(folders["legacy"]) as here:
        found, wanted = there.tensor("query", layer=1), here.tensor("query", layer=1)
        assert (found.values == wanted.values).all()
        written = library.plan(there, tp=2).write(out)
    assert (str(written.path), written.found) == (out, False)
    with library.open(out) as result:
        assert result.layout.tp == 2


def test_ranks_that_cannot_meet_beside_a_result_are_told(
    addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLMGROW_RANK", "0")
    monkeypatch.setenv("FLMGROW_WORLD_SIZE", "2")
    pattern = "where ranks of several machines cannot meet.*--scratch"
    refused(2, pattern, "verify", "--integrity", addresses["legacy"], place=tmp_path)
