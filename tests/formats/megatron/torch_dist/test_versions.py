"""megatron-core 0.19 keeps the common part of a distributed checkpoint in a shard; else nothing
differs.
"""

import io
import json
from pathlib import Path
from typing import Any

import dcp_folders
import pytest
import torch
from growing import grow_checkpoint, rank_arrays, same_bits
from pico import CONFIGS, even, make_checkpoint
from pico_dist import make_dist_checkpoint

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import full_box
from flmgrow.surgery.layout_request import LayoutRequest

COMMON_STATE = "common_state/shard_0_1"
NAMES = ["llama", "gpt", "qwen"]


def folder_of(checkpoint: Path) -> Path:
    (folder,) = checkpoint.glob("iter_*")
    return folder


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """A checkpoint's files, but for the manifest, which says where it came from."""
    found = {path.name: path.read_bytes() for path in folder_of(checkpoint).iterdir()}
    found.pop("flmgrow.json", None)
    return found


def common_state(folder: Path) -> Any:
    """The common part, as torch finds it in the shards."""
    state: dict[str, Any] = {COMMON_STATE: io.BytesIO()}
    dcp_folders.load(folder, state)
    return state[COMMON_STATE]


@pytest.mark.parametrize("name", NAMES)
def test_both_are_read_as_the_same_checkpoint(tmp_path: Path, name: str) -> None:
    older = make_dist_checkpoint(tmp_path / "older", name, 2)
    newer = make_dist_checkpoint(tmp_path / "newer", name, 2, in_shard=True)
    assert "common.pt" not in files_of(newer)
    with open_checkpoint(older) as a, open_checkpoint(newer) as b:
        assert (a.config, a.layout, a.iteration) == (b.config, b.layout, b.iteration)
        for tensor in a.reader.tensors:
            box = full_box(a.reader.tensors[tensor].shape(a.config.sizes))
            assert same_bits(a.reader.read(tensor, box), b.reader.read(tensor, box))
        assert list(rank_content(a, (0, 0))) == list(rank_content(b, (0, 0)))
        assert b.contents.verify(lambda _: None) == ("CRC32",)
        assert a.contents.digest() != b.contents.digest()
    for source in (older, newer):
        out = tmp_path / f"{source.parent.name}-legacy"
        grow_checkpoint(source, out, request=LayoutRequest(2, 2), file_format="megatron")
    assert rank_arrays(tmp_path / "older-legacy") == rank_arrays(tmp_path / "newer-legacy")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_bit_equal(tmp_path: Path, name: str) -> None:
    layout = even(CONFIGS[name], tp=2, pp=2)
    legacy = make_checkpoint(tmp_path / "legacy", name, layout, naming="fused", extra_state="bytes")
    dist, back = tmp_path / "dist", tmp_path / "back"
    grow_checkpoint(
        legacy, dist, request=LayoutRequest(2, 1), file_format="torch_dist", version="0.19"
    )
    grow_checkpoint(dist, back, request=LayoutRequest(2, 2), file_format="megatron")
    assert rank_arrays(back) == rank_arrays(legacy)


def test_only_the_common_part_differs_in_what_is_written(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "llama", 2)
    for version in (None, "0.16", "0.19"):
        grow_checkpoint(
            source, tmp_path / f"as-{version}", request=LayoutRequest(2, 1), version=version
        )
    default, older, newer = (files_of(tmp_path / f"as-{v}") for v in (None, "0.16", "0.19"))
    assert default == older
    assert older.keys() - newer.keys() == {"common.pt"}
    assert json.loads(newer["metadata.json"]) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
    }
    assert json.loads(older["metadata.json"]) == {
        **json.loads(newer["metadata.json"]),
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert newer["__0_0.distcp"].startswith(older["__0_0.distcp"])
    assert newer["__1_0.distcp"] == older["__1_0.distcp"]
    (found,) = common_state(folder_of(tmp_path / "as-0.19"))
    wanted = torch.load(folder_of(tmp_path / "as-0.16") / "common.pt", weights_only=False)
    assert found == wanted


def test_one_can_be_made_of_the_other(tmp_path: Path) -> None:
    source = make_dist_checkpoint(tmp_path, "qwen", 2, in_shard=True)
    grow_checkpoint(source, tmp_path / "a", version="0.19")
    grow_checkpoint(tmp_path / "a", tmp_path / "b", version="0.16")
    grow_checkpoint(tmp_path / "b", tmp_path / "c", version="0.19")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"version": "0.15"}, r"0\.15: wanted 0\.16 or 0\.19"),
        ({"version": "0.19", "file_format": "megatron"}, "the result has format megatron"),
    ],
)
def test_a_version_that_cannot_be(tmp_path: Path, options: dict[str, str], match: str) -> None:
    source = make_dist_checkpoint(tmp_path, "llama")
    with pytest.raises(UsageError, match=match):
        grow_checkpoint(source, tmp_path / "out", None, None, None, None, **options)


def refused(checkpoint: Path, match: str) -> None:
    with pytest.raises(BadCheckpointError, match=match):
        open_checkpoint(checkpoint)


def test_two_common_parts_are_refused(tmp_path: Path) -> None:
    root = make_dist_checkpoint(tmp_path, "llama", in_shard=True)
    (common,) = common_state(folder_of(root))
    torch.save(common, folder_of(root) / "common.pt")
    refused(root, r"has a common\.pt and common_state/shard_0_1 in a shard")


class Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "common_state/shard_0_1: found list, wanted a dict"),
        ([{}, {}], "common_state/shard_0_1: found list, wanted a dict"),
        ([{"iteration": 1}], "common_state/shard_0_1: has no args"),
        ([{"args": Program()}], "common_state/shard_0_1.*print"),
    ],
)
def test_a_common_part_that_is_none(tmp_path: Path, content: object, match: str) -> None:
    root = tmp_path / "root"
    state = {COMMON_STATE: content, "x": torch.zeros(1)}
    dcp_folders.save(root / "iter_0000001", state, flatten=False)
    (root / "latest_checkpointed_iteration.txt").write_text("1")
    refused(root, match)
