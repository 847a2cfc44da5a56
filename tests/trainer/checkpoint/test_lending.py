"""What replicas keep gets to whoever writes it, right, and a block at a time."""

import queue
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from flmgrow.storage.crc import Bytes

with warnings.catch_warnings(action="ignore"):  # megatron-core's, of what a CPU lacks
    from flmgrow.trainer.checkpoint import lending
    from flmgrow.trainer.checkpoint.lending import LentStates, most_of
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

    def stretch(self, tensor: Tensor) -> tuple[int, int]:
        kept = self.kept(tensor)
        return (0, 0) if kept is None else (kept.start, kept.stop)


class Wires:
    """What threads that stand for ranks send each other; ``largest`` of it, in bytes."""

    def __init__(self) -> None:
        self.queues: dict[tuple[int, int, int], queue.Queue[Tensor]] = {}
        self.lock = threading.Lock()
        self.largest = 0

    def queue(self, tag: int, rank: int, source: int) -> "queue.Queue[Tensor]":
        with self.lock:
            return self.queues.setdefault((tag, rank, source), queue.Queue())

    def of(self, rank: int) -> "Ends":
        return Ends(self, rank)


@dataclass
class Ends:
    """The wires of one rank."""

    wires: Wires
    rank: int

    def send(self, values: Tensor, rank: int, tag: int) -> None:
        self.wires.largest = max(self.wires.largest, values.nbytes)
        self.wires.queue(tag, rank, self.rank).put(values.clone())

    def receive(self, values: Tensor, rank: int, tag: int) -> None:
        got = self.wires.queue(tag, self.rank, rank).get(timeout=900)
        assert (got.shape, got.dtype) == (values.shape, values.dtype)
        values.copy_(got)


Blocks = Callable[[TargetArray], Iterator[Bytes]]


@dataclass
class Replicas:
    """Replicas that keep what lies between ``cuts``, each of which does something with blocks."""

    cuts: Sequence[int]
    block: int = 64
    wires: Wires = field(default_factory=Wires)

    def do(self, works: Callable[[int, Blocks], Any]) -> list[Any]:
        """What ``works`` return on each replica, or raise."""
        bounds = [0, *sorted(self.cuts), TOTAL]
        parameters = model()
        shards: list[Any] = [Shard(parameters, *pair) for pair in pairwise(bounds)]
        ranks = [3 * number + 1 for number in range(len(shards))]
        kept = [[shard.stretch(p.tensor) for p in parameters] for shard in shards]

        def work(number: int) -> Any:
            wire = self.wires.of(ranks[number])
            states = LentStates(parameters, shards[number], ranks, number, kept, wire)
            try:
                with states.lent() as blocks:
                    return works(number, blocks)
            except OSError as error:
                return error

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(ranks)) as pool:
            patch.setattr(lending, "BLOCK", self.block)
            return list(pool.map(work, range(len(ranks)), timeout=900))


def array(number: int, state: State) -> TargetArray:
    return TargetArray.alone(PLACED[number], "float32", state)


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
    """All replicas ask each other for all parameters at once."""
    replicas = Replicas(cuts, block)

    def everything(_: int, blocks: Blocks) -> list[list[bytes]]:
        return [list(map(bytes, blocks(array(n, state)))) for n in range(len(PLACED))]

    for written in replicas.do(everything):
        for number, found in enumerate(written):
            assert max(len(each) for each in found) <= block
            assert b"".join(found) == whole(number, state).numpy().tobytes()
    assert replicas.wires.largest <= max(block, 4 * 8)


def test_chunks_of_fused_parameters_are_the_parts_that_they_name() -> None:
    """As a distributed checkpoint has them: the gate, then what goes up."""
    (number,) = [n for n, p in enumerate(PLACED) if "layers.1.mlp.linear_fc1.weight" in p.key]
    chunks = [chunk for chunk, _, _ in chunks_of(PLACED[number], SIZES)]
    arrays = [TargetArray.alone(chunk, "float32", State.EXP_AVG) for chunk in chunks]

    def write(replica: int, blocks: Blocks) -> list[bytes]:
        return [b"".join(blocks(each)) for each in arrays] if replica == 0 else []

    found = Replicas([TOTAL // 3, TOTAL // 2]).do(write)[0]
    assert len(found) == 2
    assert len(found[0]) == len(found[1])
    assert b"".join(found) == whole(number, State.EXP_AVG).numpy().tobytes()


def test_weights_are_ones_own() -> None:
    replicas = Replicas([TOTAL // 2])

    def write(_: int, blocks: Blocks) -> list[bytes]:
        return [b"".join(blocks(TargetArray.alone(place, "bfloat16"))) for place in PLACED]

    wanted = [p.tensor.detach().reshape(-1).view(torch.int16).numpy().tobytes() for p in model()]
    assert replicas.do(write) == [wanted, wanted]
    assert not [key for key in replicas.wires.queues if key[0] != 1], "nothing was lent"


def test_whoever_fails_lets_the_others_finish() -> None:
    def write(replica: int, blocks: Blocks) -> bytes:
        given_ = blocks(array(0, State.MASTER))
        if replica == 1:
            next(given_)
            raise OSError("disk full")
        return b"".join(given_)

    first, second, third = Replicas([40, TOTAL // 2]).do(write)
    assert isinstance(second, OSError)
    assert first == third == whole(0, State.MASTER).numpy().tobytes()


def test_a_replica_writes_what_it_keeps_most_of() -> None:
    kept = [[(0, 0), (0, 5), (0, 2)], [(0, 7), (5, 10), (2, 9)], [(7, 10), (0, 0), (9, 10)]]
    assert most_of(kept) == [1, 0, 1]
    assert most_of([[], []]) == []


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
