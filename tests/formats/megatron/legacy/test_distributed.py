"""Flat buffers name no parameter, so the place of each is checked against code of its own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit, edit_all, rank_files
from growing import SmallBlocks, all_files, grow_checkpoint
from pico import CONFIGS, even, make_checkpoint, padded_vocab
from pico_buckets import BUCKETS, LAYOUTS, MADE
from pico_distributed import FLAT, STATES, Content, distribute
from sampling import sample
from strategies import as_request
from torch import Tensor

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.formats.opening import with_optimizer
from flmgrow.formats.pieces import read_whole
from flmgrow.model.axes import full_box
from flmgrow.model.states import State
from flmgrow.operators.target import Target, parse_methods


def make(path: Path, name: str, layout: Layout, dtype: str = "bfloat16", **arguments: Any) -> Path:
    """Make a checkpoint with a distributed optimizer."""
    make_checkpoint(path, name, layout, dtype=dtype, optimizer=True, multiple=1, **arguments)
    size = arguments.get("ddp_bucket_size") if arguments.get("overlap_grad_reduce") else None
    return distribute(path, size)


def buffers(root: Path) -> dict[str, Content]:
    """What stock torch reads, by rank; it refuses all that is not tensors, numbers and dtypes."""
    return {
        file.parent.name: torch.load(file, weights_only=True)
        for file in sorted(root.glob(f"*/*/{FLAT}"))
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where} {key}")
    elif isinstance(one, Tensor):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)), where
    else:
        assert one == other, where


@pytest.mark.parametrize("buckets", [{}, BUCKETS], ids=["whole", "buckets"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sample(["gpt", "llama", "tele"], "llama"))
def test_every_parameter_is_found(
    name: str, dtype: str, buckets: dict[str, Any], tmp_path: Path
) -> None:
    for number, layout in enumerate(LAYOUTS.values()):
        path = make(tmp_path / f"{number}", name, layout, dtype, **buckets)
        with open_megatron(path) as opened:
            found = with_optimizer(opened)
            assert found.optimizer is not None
            assert found.optimizer.gradient_dtype == "float32"
            weights = {id(piece.placement): read_whole(piece) for piece in opened.reader.arrays}
            for state, key in STATES.items():
                pieces = found.state_readers[state].arrays
                assert len(pieces) == len(weights)
                for piece in pieces:
                    weight = weights[id(piece.placement)]
                    tensor = torch.from_numpy(weight.astype("float32"))
                    wanted = MADE[key](tensor.to(getattr(torch, dtype)))
                    assert torch.equal(torch.from_numpy(read_whole(piece)), wanted), piece


@pytest.mark.parametrize("buckets", [{}, BUCKETS], ids=["whole", "buckets"])
@pytest.mark.parametrize("name", ["gpt", "llama", "tele"])
def test_resharded_buffers_are_those_of_the_layout(
    name: str, buckets: dict[str, Any], tmp_path: Path
) -> None:
    config = CONFIGS[name]
    same = [x for x in LAYOUTS.values() if padded_vocab(config, x.tp, 1) == config.vocab]
    assert len(same) > 2
    made = [make(tmp_path / f"made {i}", name, layout, **buckets) for i, layout in enumerate(same)]
    for number, layout in enumerate(same[1:], 1):
        there, back = tmp_path / f"there {number}", tmp_path / f"back {number}"
        grow_checkpoint(
            made[0],
            there,
            request=as_request(layout),
            execution=SmallBlocks(workers=2, elements=50),
        )
        assert_same(buffers(there), buffers(made[number]))
        grow_checkpoint(there, back, request=as_request(same[0]))
        assert_same(buffers(back), buffers(made[0]))
        entries = [torch.load(rank_files(p)[0], weights_only=False) for p in (made[0], back)]
        assert entries[0]["optimizer"] == entries[1]["optimizer"]


GROWTH = Target(hidden=24, ffn=32, layers=6, methods=parse_methods("zero"))


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_states_grow_as_those_of_a_plain_optimizer(name: str, tmp_path: Path) -> None:
    layout = even(CONFIGS[name], tp=2, pp=2)
    plain = make_checkpoint(tmp_path / "plain", name, layout, dtype="bfloat16", optimizer=True)
    made = make_checkpoint(tmp_path / "flat", name, layout, dtype="bfloat16", optimizer=True)
    flat = distribute(made)
    for path in (plain, flat):
        grow_checkpoint(
            path, path.with_suffix(".grown"), GROWTH, as_request(Layout(1, 2, 1, (2, 4)))
        )
    opened = [with_optimizer(open_megatron(p.with_suffix(".grown"))) for p in (plain, flat)]
    for state in (State.EXP_AVG, State.EXP_AVG_SQ):
        one, other = (found.state_readers[state] for found in opened)
        for tensor in one.tensors:
            values = [r.read(tensor, full_box(r.shape(tensor))) for r in (one, other)]
            assert (values[0] == values[1]).all(), tensor
    for found in opened:
        found.close()


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "gpt", even(CONFIGS["gpt"], tp=2, pp=2))
    written = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}"
        grow_checkpoint(source, out, GROWTH, execution=SmallBlocks(workers=workers, elements=50))
        written.append(all_files(out))
    assert written[0] == written[1]


def buffer(content: Content, chunk: int = 0) -> Content:
    (entry,) = content[chunk].values()
    found: Content = entry
    return found


def move(content: Content) -> None:
    """Put every master one element further: as if the layout rule were another."""
    entry = buffer(content)
    entry["param"] = entry["param"].roll(1)


def rename(content: Content) -> None:
    content[0] = {(torch.uint8, torch.float32): buffer(content)}


def double(content: Content) -> None:
    content[0][torch.float16, torch.float32] = copy.deepcopy(buffer(content))


DAMAGE: dict[str, tuple[Callable[[Content], object], str]] = {
    "wrong size": (lambda c: buffer(c).update(numel_unpadded=7), "numel_unpadded 7, wanted"),
    "short": (lambda c: buffer(c).update(exp_avg=torch.zeros(64)), "exp_avg: is not .* numbers"),
    "half": (lambda c: buffer(c).update(exp_avg=buffer(c)["exp_avg"].half()), "of float32"),
    "no chunk": (lambda c: c.pop(0), "holds model chunks none, wanted 1"),
    "another chunk": (lambda c: c.update({1: c[0]}), "holds model chunks 0, 1, wanted 1"),
    "another entry": (lambda c: c.update(news=1), "holds model chunks 0, news"),
    "another buffer": (lambda c: buffer(c).update(news=1), "chunk 0: is not param, exp_avg"),
    "moved": (move, "what should be the master of .* is not what the weights are made of"),
    "dtypes": (rename, "buffer of .*uint8.*, wanted one of bfloat16"),
    "two buffers": (double, "holds not one buffer"),
    "old": (lambda c: c.pop("buckets_coalesced"), "is not a file of one optimizer.*--no-optimizer"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_other_buffers_are_refused(name: str, tmp_path: Path) -> None:
    change, says = DAMAGE[name]
    source = make(tmp_path / "source", "gpt", even(CONFIGS["gpt"], tp=2, pp=2))
    file = rank_files(source)[2].with_name(FLAT)
    edit(file, change)
    where = f"mp_rank_01_000/{FLAT}: .*{says}"
    refused(3, where, "reshard", source, tmp_path / "out", "--tp", "1", place=tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "gpt", even(CONFIGS["gpt"], tp=2, pp=2))
    file = rank_files(source)[2].with_name(FLAT)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    where = f"mp_rank_01_000/{FLAT}: .*damaged"
    refused(3, where, "reshard", source, tmp_path / "out", "--tp", "1", place=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "gpt", even(CONFIGS["gpt"], tp=2, pp=2))
    rank_files(source)[2].with_name(FLAT).unlink()
    where = f"mp_rank_01_000/{FLAT}: not there, wanted one beside each of 4 ranks.*--no-optimizer"
    refused(3, where, "reshard", source, tmp_path / "out", "--tp", "1", place=tmp_path)


@pytest.mark.parametrize("how", ["keep", "reset"])
def test_verify_looks_at_the_step_in_its_groups(how: str, tmp_path: Path) -> None:
    """In both ranks it is one ahead, and all sums are right: no other check can tell."""
    source = make(tmp_path / "a", "llama", even(CONFIGS["llama"], 2))
    options = ("--ffn-hidden-size", 24, "--method", "zero", "--optimizer", how)
    accepted("expand", source, tmp_path / "b", *options)
    step = 30 if how == "keep" else 0
    says = f"step {step}, 2 param groups as in the source"
    assert says in accepted("verify", source, tmp_path / "b").out

    def count_on(content: Content) -> None:
        for group in content["optimizer"]["optimizer"]["param_groups"]:
            group["step"] += 1

    edit_all(tmp_path / "b", count_on)
    outcome = flmgrow("verify", source, tmp_path / "b")
    assert outcome.code == 1
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("DIFFERENT")]
    assert f"step of param group 0 is {step + 1}, wanted {step}; " in line


def test_a_rank_whose_states_were_not_copied_is_named(tmp_path: Path) -> None:
    """A part of the checkpoint is missing, which is no lack of evidence: each command says so.

    Without any rank's states, verify compares the rest, and says what is not proven.
    """
    source = make(tmp_path / "a", "tele", Layout(2, 1, 1, (4,)))
    accepted("reshard", source, tmp_path / "whole")
    first, second = (file.with_name(FLAT) for file in rank_files(source))
    second.unlink()
    says = "mp_rank_01/distrib_optim.pt: not there, wanted one beside each of 2 ranks\nhint: copy"
    for words in (
        ("verify", source, tmp_path / "whole"), ("verify", tmp_path / "whole", source),
        ("verify", "--integrity", source), ("reshard", source, tmp_path / "x"),
        ("expand", source, tmp_path / "x", "--num-layers", 5, "--method", "zero"),
    ):  # fmt: skip
        refused(3, says, *words, place=tmp_path)
    note = accepted("inspect", source).err
    assert f"note: {second}: not there, wanted one beside each of 2 ranks (copy the rank" in note
    accepted("reshard", source, tmp_path / "weights", "--no-optimizer")
    first.unlink()
    assert flmgrow("verify", "--integrity", source).code == 9
    assert accepted("inspect", source).err == ""
