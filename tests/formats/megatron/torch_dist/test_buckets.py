"""Buckets name no parameter, and are cut anywhere: all that is found in them must be proved."""

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from commands import accepted, refused
from dcp_folders import Box
from growing import same_bits
from hypothesis import given
from hypothesis import strategies as st
from pico_buckets import BUCKETS, LAYOUTS, MADE, make_bucket_checkpoint
from pico_dist import Boxes
from strategies import examples

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.gradient_buffers import BUFFERS
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.model.axes import full_box

State = dict[str, Any]
SPLIT = Layout(2, 2, 1, (1, 3))


def assert_found(dist: Path, legacy: Path, dtype: str) -> None:
    """Every state of every parameter is what it was made from the weights of ``legacy``."""
    with open_checkpoint(dist) as source, open_checkpoint(legacy) as wanted:
        found = with_optimizer(source)
        assert found.optimizer is not None
        assert found.optimizer.mixed_precision == (dtype == "bfloat16")
        assert found.optimizer.gradient_dtype == "float32"
        assert [group["wd_mult"] for group in found.optimizer.groups] == [1.0, 0.0]
        assert found.state_readers.keys() == BUFFERS.keys()
        for state, reader in found.state_readers.items():
            assert found.optimizer.dtypes[state] == "float32"
            for name in wanted.reader.tensors:
                box = full_box(wanted.reader.shape(name))
                weight = torch.from_numpy(wanted.reader.read(name, box).astype("float32"))
                made = MADE[BUFFERS[state]](weight.to(getattr(torch, dtype)))
                assert same_bits(reader.read(name, box), made.numpy()), f"{state} of {name}"


@pytest.mark.parametrize("buckets", [{}, BUCKETS], ids=["whole", "buckets"])
@pytest.mark.parametrize("name", ["gpt", "llama", "tele"])
def test_every_parameter_is_found(name: str, buckets: dict[str, Any], tmp_path: Path) -> None:
    kinds = cycle(product(("bfloat16", "float32"), ("local", "fused")))
    for layout, (dtype, naming) in zip(LAYOUTS.values(), kinds, strict=False):
        path = tmp_path / f"{layout} {dtype}"
        made = make_bucket_checkpoint(path, name, layout, dtype, naming, **buckets)
        assert_found(*made, dtype)


@examples(8)
@given(data=st.data(), layout=st.sampled_from([*LAYOUTS.values()]))
def test_buckets_may_be_cut_anywhere(data: st.DataObject, layout: Layout) -> None:
    def cuts(size: int) -> list[Box]:
        inner = data.draw(st.sets(st.integers(1, size - 1), max_size=6))
        ends = [*sorted(inner), size]
        return [((low,), (high - low,)) for low, high in zip([0, *ends], ends, strict=False)]

    with TemporaryDirectory() as folder:
        made = make_bucket_checkpoint(Path(folder), "gpt", layout, "bfloat16", cuts=cuts, **BUCKETS)
        assert_found(*made, "bfloat16")


def test_it_is_resharded_and_verified(tmp_path: Path) -> None:
    source, _ = make_bucket_checkpoint(tmp_path / "source", "llama", SPLIT, **BUCKETS)
    out = tmp_path / "out"
    accepted("reshard", source, out, "--tp", "1", "--format", "megatron")
    accepted("verify", source, out)
    with open_checkpoint(source) as one, open_checkpoint(out) as other:
        before, after = with_optimizer(one), with_optimizer(other)
        assert before.optimizer is not None
        assert after.optimizer is not None
        assert after.optimizer.groups == before.optimizer.groups
        for state, reader in before.state_readers.items():
            for name in reader.tensors:
                box = full_box(reader.shape(name))
                values = [x.read(name, box) for x in (reader, after.state_readers[state])]
                assert same_bits(*values), f"{state} of {name}"


GROUP = "optimizer.distributed.dp_group_idx_2"
BUCKET = f"{GROUP}.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_1"
MASTER = f"{BUCKET}.param"


def resize(state: State, boxes: Boxes) -> None:
    state[MASTER] = torch.cat((state[MASTER], torch.zeros(64)))
    del boxes[MASTER]


def move(state: State, boxes: Boxes) -> None:
    """Put every master one element further: as if the rule were another."""
    state[MASTER] = state[MASTER].roll(1)


def swap(state: State, boxes: Boxes) -> None:
    """Give a tensor rank the masters of another."""
    other = MASTER.replace("idx_2", "idx_3")
    state[MASTER], state[other] = state[other], state[MASTER]


def narrow(state: State, boxes: Boxes) -> None:
    state[f"{BUCKET}.exp_avg"] = state[f"{BUCKET}.exp_avg"].half()


def rename(name: str, old: str, new: str) -> Callable[[State, Boxes], None]:
    def change(state: State, boxes: Boxes) -> None:
        state[name.replace(old, new)] = state.pop(name)
        del boxes[name]

    return change


def add(name: str, value: Any) -> Callable[[State, Boxes], None]:
    return lambda state, boxes: state.update({name: value})


ENTRY = f"{GROUP}.optimizer/shard_0_1"
OTHER_GROUPS = [{"param_groups": [{"lr": 1.0, "step": 30}]}]
NUMBERS = torch.zeros(64)
DAMAGE: dict[str, tuple[Callable[[State, Boxes], object], str]] = {
    "a size": (resize, r"idx_2.*bucket_idx_1\.param: shape \(\d+,\), wanted .*ddp_bucket_size"),
    "a bucket lost": (
        lambda state, boxes: [state.pop(f"{BUCKET}.{name}") for name in BUFFERS.values()],
        r"idx_2.*bucket_idx_1\.param: not there, wanted \d+ elements",
    ),
    "a state lost": (
        lambda state, boxes: state.pop(f"{BUCKET}.exp_avg_sq"),
        r"bucket_idx_1\.exp_avg_sq: not there",
    ),
    "a bucket more": (
        add(MASTER.replace("bucket_idx_1", "bucket_idx_9"), NUMBERS),
        r"bucket_idx_9\.param: .* make no such bucket",
    ),
    "a chunk more": (
        add(MASTER.replace("gbuf_idx_0", "gbuf_idx_1"), NUMBERS), "gbuf_idx_1.* make no such bucket"
    ),
    "a rank more": (
        add(MASTER.replace("idx_2", "idx_4"), NUMBERS), "group_idx_4.* make no such bucket"
    ),
    "an object more": (
        add(ENTRY.replace("idx_2", "idx_4"), OTHER_GROUPS), r"group_idx_4\.opt.* make no such rank"
    ),
    "masters moved": (
        move, r"bucket_idx_1: param: what should be the master of .* is not what the weights"
    ),
    "masters swapped": (swap, "idx_2.*: what should be the master of .* is not what the weights"),
    "a narrow state": (narrow, r"bucket_idx_1\.exp_avg: dtype float16, wanted float32"),
    "two dtypes": (rename(MASTER, "32)", "16)"), r"float16\).*: wanted buckets of bfloat16"),
    "other weights": (rename(MASTER, "bfloat16", "uint8"), r"uint8.*: wanted buckets of bfloat16"),
    "other groups": (add(ENTRY, OTHER_GROUPS), "idx_2: its optimizer is unlike that of dp_group"),
    "no groups": (
        lambda state, boxes: [
            state.pop(name) for name in [*state] if name.endswith(".optimizer/shard_0_1")
        ],
        "group_idx_0: optimizer: has no param_groups",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_other_buckets_are_refused(name: str, tmp_path: Path) -> None:
    change, says = DAMAGE[name]
    source, _ = make_bucket_checkpoint(tmp_path / "source", "llama", SPLIT, change=change)
    reshard = ("reshard", source, tmp_path / "out", "--format", "megatron")
    refused(3, f"iter_0000030: optimizer.*{says}", *reshard, place=tmp_path)
    accepted(*reshard, "--no-optimizer")


def test_state_nobody_knows_is_refused(tmp_path: Path) -> None:
    change = add(f"{BUCKET}.momentum", NUMBERS)
    source, _ = make_bucket_checkpoint(tmp_path / "source", "llama", SPLIT, change=change)
    reshard = ("reshard", source, tmp_path / "out", "--format", "megatron")
    refused(2, "iter_0000030: .*momentum: .* not read.*--no-optimizer", *reshard, place=tmp_path)


def test_another_bucket_size_is_refused(tmp_path: Path) -> None:
    source, _ = make_bucket_checkpoint(tmp_path / "source", "llama", SPLIT, **BUCKETS)
    (file,) = source.rglob("common.pt")
    common = torch.load(file, weights_only=False)
    common["args"].ddp_bucket_size = 1200
    torch.save(common, file)
    says = r"idx_0.*bucket_idx_0\.param: shape \(\d+,\), wanted \(\d+,\).*ddp_bucket_size"
    reshard = ("reshard", source, tmp_path / "out", "--format", "megatron")
    refused(3, says, *reshard, place=tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    source, _ = make_bucket_checkpoint(tmp_path / "source", "llama", SPLIT)
    with open_checkpoint(source) as opened:
        chunk = opened.contents.metadata.tensors[f"{BUCKET}.exp_avg"].chunks[0]  # type: ignore[attr-defined]
    file = next(source.rglob(chunk.file))
    content = bytearray(file.read_bytes())
    content[chunk.offset + chunk.length // 2] ^= 1
    file.write_bytes(content)
    reshard = ("reshard", source, tmp_path / "out", "--format", "megatron")
    refused(3, rf"{chunk.file}: .*damaged.*\(it holds .*idx_2.*exp_avg\)", *reshard, place=tmp_path)
