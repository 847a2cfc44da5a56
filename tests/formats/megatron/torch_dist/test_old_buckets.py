"""States of the distributed optimizer that megatron-core saved up to 0.14, bound to a layout.

They are built from the same run's buckets as a legacy checkpoint has (``pico_buckets.py``).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from damage import rank_files
from optimizer_states import states
from pico_buckets import LAYOUTS, make_bucket_checkpoint, rank_buckets
from pico_dist import Boxes

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.opening import open_checkpoint, with_optimizer

State = dict[str, Any]
PREFIX = "optimizer.distributed."
NAMES = ["one rank", "tensor", "uneven", "virtual"]


def gathered(ranks: Path) -> Callable[[State, Boxes], None]:
    """Return what puts each rank's buckets into one object, joined."""

    def change(state: State, boxes: Boxes) -> None:
        for name in [name for name in state if name.startswith(PREFIX) and ".gbuf_idx" in name]:
            del state[name], boxes[name]
        files = sorted(rank_files(ranks), key=lambda file: file.parent.name.split("_")[:1:-1])
        for group, file in enumerate(files):
            dtype = torch.load(file, weights_only=False)["args"].params_dtype
            content: dict[Any, Any] = {"buckets_coalesced": True}
            for number, chunk in enumerate(rank_buckets(file, None)):
                flat: dict[str, Any] = {key: torch.cat(parts) for key, parts in chunk.items()}
                flat["numel_unpadded"] = len(flat["param"])
                content[number] = {(dtype, torch.float32): flat}
            state[f"{PREFIX}dp_group_idx_{group}.param_state/shard_0_1"] = [content]

    return change


def in_memory(replicas: int, rows: bool) -> Callable[[State, Boxes], None]:
    """Return what pads every bucket for so many replicas, their shares as rows or in a line."""

    def change(state: State, boxes: Boxes) -> None:
        for name in [name for name in state if ".gbuf_idx" in name]:
            bucket = state[name]
            share = -(-len(bucket) // replicas) + 3
            padded = torch.cat((bucket, torch.full((share * replicas - len(bucket),), torch.nan)))
            state[name] = padded.reshape(replicas, share) if rows else padded
            if rows:
                cuts = [(0, 3), (3, share - 3)]
                boxes[name] = [((n, at), (1, size)) for n in range(replicas) for at, size in cuts]
            else:
                boxes[name] = [((n * share,), (share,)) for n in range(replicas)]

    return change


def make(path: Path, name: str, kind: str, change: Callable[[State, Boxes], None]) -> Path:
    root, _ = make_bucket_checkpoint(path, "llama", LAYOUTS[name], change=change)
    (common,) = root.rglob("common.pt")
    content = torch.load(common, weights_only=False)
    content["optimizer"]["param_state_sharding_type"] = kind
    torch.save(content, common)
    return root


def assert_same_states(a: Path, b: Path) -> None:
    one, other = states(a), states(b)
    assert list(one) == list(other) == ["weight", "master", "exp_avg", "exp_avg_sq"]
    for state, name in ((kind, name) for kind in one for name in one[kind]):
        same = one[state][name].tobytes() == other[state][name].tobytes()
        assert same, (state, name)


@pytest.mark.parametrize("name", NAMES)
def test_one_object_for_each_rank(tmp_path: Path, name: str) -> None:
    plain, ranks = make_bucket_checkpoint(tmp_path / "a", "llama", LAYOUTS[name])
    old = make(tmp_path / "b", name, "dp_zero_gather_scatter", gathered(ranks))
    assert_same_states(plain, old)
    with open_checkpoint(plain) as x, open_checkpoint(old) as y:
        assert vars(with_optimizer(x).optimizer) == vars(with_optimizer(y).optimizer)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_buckets_as_in_memory(tmp_path: Path, name: str, rows: bool) -> None:
    plain, _ = make_bucket_checkpoint(tmp_path / "a", "llama", LAYOUTS[name])
    old = make(tmp_path / "b", name, "fully_sharded_bucket_space", in_memory(3, rows))
    assert_same_states(plain, old)


def test_they_are_written_in_todays_form(tmp_path: Path) -> None:
    plain, ranks = make_bucket_checkpoint(tmp_path / "a", "llama", LAYOUTS["uneven"])
    old = make(tmp_path / "b", "uneven", "dp_zero_gather_scatter", gathered(ranks))
    for name, source in (("x", plain), ("y", old)):
        accepted("reshard", source, tmp_path / name, "--tp", 1, "--pp", 2)
    assert_same_states(tmp_path / "x", tmp_path / "y")
    accepted("verify", old, tmp_path / "y")
    (common,) = (tmp_path / "y").rglob("common.pt")
    found = torch.load(common, weights_only=False)["optimizer"]["param_state_sharding_type"]
    assert found == "fully_reshardable"


def test_groups_in_another_order_are_the_same_groups(tmp_path: Path) -> None:
    def change(state: State, boxes: Boxes) -> None:
        state[f"{PREFIX}dp_group_idx_1.optimizer/shard_0_1"][0]["param_groups"].reverse()
        state[f"{PREFIX}dp_group_idx_2.optimizer/shard_0_1"][0]["param_groups"].pop()

    root, _ = make_bucket_checkpoint(tmp_path, "llama", LAYOUTS["uneven"], change=change)
    with open_checkpoint(root) as opened:
        found = with_optimizer(opened).optimizer
        assert found is not None
        assert len(found.groups) == 2


def another_step(state: State, boxes: Boxes) -> None:
    state[f"{PREFIX}dp_group_idx_1.optimizer/shard_0_1"][0]["param_groups"][0]["step"] = 31


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (another_step, "dp_group_idx_1: its optimizer is unlike that of dp_group_idx_0"),
        (in_memory(2, True), "bucket_idx_0.param: shape .*, wanted"),
        (in_memory(2, False), "bucket_idx_0.param: shape .*, wanted"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[State, Boxes], None], says: str
) -> None:
    root, _ = make_bucket_checkpoint(tmp_path, "llama", LAYOUTS["tensor"], change=change)
    with open_checkpoint(root) as opened, pytest.raises(BadCheckpointError, match=says):
        with_optimizer(opened)


def without(part: Callable[[Any], object]) -> Callable[[Path], Callable[[State, Boxes], None]]:
    def of(ranks: Path) -> Callable[[State, Boxes], None]:
        def change(state: State, boxes: Boxes) -> None:
            gathered(ranks)(state, boxes)
            part(state)

        return change

    return of


FIRST = f"{PREFIX}dp_group_idx_0.param_state/shard_0_1"


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (lambda state: state.pop(FIRST), "dp_group_idx_0.param_state/shard_0_1: not there"),
        (lambda state: state[FIRST].append({}), "param_state/shard_0_1: found list, wanted a list"),
        (lambda state: state[FIRST][0].pop("buckets_coalesced"), "is not a file of one optimizer"),
        (lambda state: state[FIRST][0].pop(0), "holds model chunks none, wanted 1 from 0 on"),
    ],
)
def test_an_object_that_is_none(tmp_path: Path, part: Callable[[Any], object], says: str) -> None:
    _, ranks = make_bucket_checkpoint(tmp_path / "a", "llama", LAYOUTS["tensor"])
    root = make(tmp_path / "b", "tensor", "dp_zero_gather_scatter", without(part)(ranks))
    with open_checkpoint(root) as opened, pytest.raises(BadCheckpointError, match=says):
        with_optimizer(opened)
