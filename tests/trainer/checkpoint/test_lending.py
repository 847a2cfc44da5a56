"""What replicas keep gets to the one that writes, right, and a block at a time."""

import queue
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from strategies import examples
from torch import Tensor

from flmgrow.formats.layout.chunks import chunks_of
from flmgrow.formats.layout.placements import make_layout, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.targets import TargetArray
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import MOMENTS, State
from flmgrow.model.tensors import logical_tensors

with warnings.catch_warnings(action="ignore"):  # megatron-core's, of what a CPU lacks
    from flmgrow.trainer.checkpoint import lending
    from flmgrow.trainer.checkpoint.lending import LentStates
    from flmgrow.trainer.megatron.parameters import Kept, Parameter, fill

CONFIG = ModelConfig(
    2, 16, 24, 2, 2, 4, 50, 32, norm="rmsnorm", activation="swiglu", linear_bias=False,
    qkv_bias=True,
)  # fmt: skip
SIZES = {**CONFIG.sizes, Axis.VOCAB: 64}
PLACED = placements(ROWS, logical_tensors(CONFIG), SIZES, make_layout(2))
TOTAL = sum(prod(place.shape) for place in PLACED)
STATES = (State.MASTER, *MOMENTS)


def model() -> list[Parameter]:
    """All parameters of a small model, of values that tell where they lie."""
    found, at = [], 0
    for place in PLACED:
        count = prod(place.shape)
        values = torch.arange(at, at + count, dtype=torch.float32).view(place.shape)
        found.append(Parameter(place, torch.nn.Parameter(values.bfloat16())))
        at += count
    return found


def whole(number: int, state: State) -> Tensor:
    """All of a state of a parameter, flat."""
    begin = sum(prod(place.shape) for place in PLACED[:number])
    count = prod(PLACED[number].shape)
    return torch.arange(begin, begin + count, dtype=torch.float32) + 0.25 * STATES.index(state)


class Shard:
    """A distributed optimizer that keeps the elements from one to another of all parameters."""

    distributed, counts_by_group = True, False

    def __init__(self, parameters: Sequence[Parameter], start: int, stop: int) -> None:
        self.found: dict[int, Kept] = {}
        at = 0
        for number, parameter in enumerate(parameters):
            count = parameter.tensor.numel()
            low, high = max(0, start - at), min(count, stop - at)
            if low < high:
                master, *moments = (whole(number, state)[low:high].clone() for state in STATES)
                entry = dict(zip(map(str, MOMENTS), moments, strict=True))
                self.found[id(parameter.tensor)] = Kept(low, high, master, entry)
            at += count

    def kept(self, tensor: Tensor) -> Kept | None:
        return self.found.get(id(tensor))


class Wires:
    """What threads that stand for ranks send each other; ``largest`` is that in bytes."""

    def __init__(self) -> None:
        self.own = threading.local()
        self.queues: dict[tuple[int, int], queue.Queue[Tensor]] = defaultdict(queue.Queue)
        self.largest = 0

    def send(self, values: Tensor, rank: int) -> None:
        self.largest = max(self.largest, values.nbytes)
        self.queues[self.own.rank, rank].put(values.clone())

    def receive(self, values: Tensor, rank: int) -> None:
        got = self.queues[rank, self.own.rank].get(timeout=300)
        assert (got.shape, got.dtype) == (values.shape, values.dtype)
        values.copy_(got)


@dataclass
class Writer:
    """The replica that writes, with what all replicas sent so far."""

    states: LentStates
    wires: Wires


@contextmanager
def replicas(cuts: Sequence[int], block: int) -> Iterator[Writer]:
    """Let replicas that keep what lies between ``cuts`` lend it to the first of them."""
    wires, parameters = Wires(), model()
    bounds = [0, *sorted(cuts), TOTAL]
    ranks = [3 * number + 1 for number in range(len(bounds) - 1)]
    given_: Any = [Shard(parameters, *pair) for pair in pairwise(bounds)]

    def lend(number: int) -> None:
        wires.own.rank = ranks[number]
        LentStates(parameters, given_[number], ranks, writes=False).lend()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(ranks)) as pool:
        patch.setattr(lending, "BLOCK", block)
        patch.setattr(lending, "send", wires.send)
        patch.setattr(lending, "receive", wires.receive)
        wires.own.rank = ranks[0]
        lenders = [pool.submit(lend, number) for number in range(1, len(ranks))]
        states = LentStates(parameters, given_[0], ranks, writes=True)
        try:
            with states.borrowed():
                yield Writer(states, wires)
        finally:
            for lender in lenders:
                lender.result(timeout=300)


@pytest.mark.slow
@examples(20)
@given(
    cuts=st.lists(st.integers(0, TOTAL), max_size=3),
    block=st.integers(100, 2000).map(lambda count: 4 * count),
    state=st.sampled_from(STATES),
)
def test_states_are_whole_wherever_replicas_are_cut(
    cuts: list[int], block: int, state: State
) -> None:
    with replicas(cuts, block) as writer:
        for number, place in enumerate(PLACED):
            blocks = list(writer.states.blocks(TargetArray.alone(place, "float32", state)))
            assert max(len(each) for each in blocks) <= block
            assert b"".join(blocks) == whole(number, state).numpy().tobytes()
        assert writer.wires.largest <= max(block, 16 * len(PLACED), 4 * 8)


def test_chunks_of_fused_parameters_are_the_parts_that_they_name() -> None:
    """As a distributed checkpoint has them: the gate, then what goes up."""
    (number,) = [n for n, p in enumerate(PLACED) if "layers.1.mlp.linear_fc1.weight" in p.key]
    with replicas([TOTAL // 3, TOTAL // 2], 64) as writer:
        chunks = [chunk for chunk, _, _ in chunks_of(PLACED[number], SIZES)]
        assert len(chunks) == 2
        arrays = [TargetArray.alone(chunk, "float32", State.EXP_AVG) for chunk in chunks]
        found = [b"".join(writer.states.blocks(array)) for array in arrays]
    assert b"".join(found) == whole(number, State.EXP_AVG).numpy().tobytes()
    assert len(found[0]) == len(found[1])


def test_weights_are_the_writers_own() -> None:
    with replicas([TOTAL // 2], 64) as writer:
        before = sum(waiting.qsize() for waiting in writer.wires.queues.values())
        for place, parameter in zip(PLACED, model(), strict=True):
            array = TargetArray.alone(place, "bfloat16")
            wanted = parameter.tensor.detach().reshape(-1).view(torch.int16).numpy().tobytes()
            assert b"".join(writer.states.blocks(array)) == wanted
        assert sum(waiting.qsize() for waiting in writer.wires.queues.values()) == before


def fail_in_the_middle() -> None:
    with replicas([TOTAL // 2], 64) as writer:
        next(writer.states.blocks(TargetArray.alone(PLACED[-1], "float32", State.MASTER)))
        raise OSError("disk full")


def test_a_writer_that_fails_lets_the_others_go() -> None:
    with pytest.raises(OSError, match="disk"):
        fail_in_the_middle()


def test_what_is_filled_reads_of_moments_what_is_kept_here() -> None:
    parameter = model()[0]
    count = parameter.tensor.numel()
    shard: Any = Shard([parameter], 7, count - 5)
    asked: dict[State, list[tuple[int, int]]] = defaultdict(list)

    def stored(state: State) -> Any:
        def read(start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
            assert state is not State.WEIGHT, "there is a master"
            for low in range(start, stop, 10):
                asked[state].append((low, min(low + 10, stop)))
                values = torch.arange(low, min(low + 10, stop), dtype=torch.float32)
                yield low, values * (2 + STATES.index(state))

        return read

    fill(parameter, shard, {state: stored(state) for state in (*STATES, State.WEIGHT)}, 4)
    kept, every = shard.kept(parameter.tensor), torch.arange(count, dtype=torch.float32)
    assert torch.equal(parameter.tensor.view(-1), (every * 2).bfloat16())
    assert torch.equal(kept.master, every[7 : count - 5] * 2)
    for state in MOMENTS:
        found = kept.entry[str(state)]
        assert torch.equal(found, every[7 : count - 5] * (2 + STATES.index(state)))
        assert (asked[state][0][0], asked[state][-1][1]) == (7, count - 5)
    assert (asked[State.MASTER][0][0], asked[State.MASTER][-1][1]) == (0, count)
    assert kept.entry["step"] == 4
