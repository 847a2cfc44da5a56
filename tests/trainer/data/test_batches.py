"""Whatever happens to a run, its samples come once each, in one order, in the right proportion."""

from collections import Counter
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.trainer.data.batches import Batches, Batching, MicroBatches
from flmgrow.trainer.data.blends import Blend, blended, counted, weights_of
from flmgrow.trainer.data.samples import Sample, attention_mask, seed_of

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6).map(
    lambda parts: [Fraction(part, sum(parts)) for part in parts]
)


class Numbers:
    """Samples whose tokens say their number, and which of ``size`` they are in an epoch."""

    def __init__(self, name: int, size: int = 10) -> None:
        self.identity = {"name": name, "size": size}
        self.earlier = {"name": f"{name} of an earlier version", "size": size}
        self._name, self._size = name, size

    def __getitem__(self, index: int) -> Sample:
        tokens = np.array([self._name, index, index % self._size])
        return Sample(tokens, tokens, np.ones(3, np.float32), np.arange(3))


def seen(step: MicroBatches) -> list[int]:
    return [int(row[1]) for micro_batch in step for row in micro_batch["tokens"]]


@given(weights=WEIGHTS, size=st.integers(1, 3000))
def test_a_blend_takes_each_source_from_its_start_without_a_gap(
    weights: list[Fraction], size: int
) -> None:
    counts = Counter[int]()
    for index in range(size):
        source, place = blended(index, weights)
        assert place == counts[source]
        counts[source] += 1
    for source, weight in enumerate(weights):
        assert abs(counts[source] - size * weight) < source + 1
    assert counted(size, weights) == [counts[source] for source in range(len(weights))]


@given(weights=WEIGHTS, begin=st.integers(0, 10**12), size=st.integers(1, 500))
def test_every_batch_has_its_share(weights: list[Fraction], begin: int, size: int) -> None:
    found = [blended(index, weights)[0] for index in range(begin, begin + size)]
    exact = size * weights[0]
    assert floor(exact) <= found.count(0) <= ceil(exact)


def test_the_papers_blend_is_exact() -> None:
    weights = weights_of(["53.5", "46.5"])
    assert weights == (Fraction(107, 200), Fraction(93, 200))
    sources = [blended(index, weights)[0] for index in range(200_000)]
    assert Counter(sources) == {0: 107_000, 1: 93_000}
    assert all(sources[i : i + 200].count(0) == 107 for i in range(0, 5000, 37))


@pytest.mark.parametrize("texts", [[], ["0", "1"], ["-1", "2"], ["nan"], ["x"], ["1/0"]])
def test_weights_that_are_none_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="weights"):
        weights_of(texts)


def test_a_blend_needs_a_weight_for_each_source() -> None:
    with pytest.raises(UsageError, match="2 corpora and 1 weights"):
        Blend([Numbers(0), Numbers(1)], weights_of(["1"]))


BATCHINGS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).map(
    lambda sizes: (sizes[0] * sizes[1] * sizes[2], sizes[0], sizes[1])
)


@given(
    stages=st.lists(st.tuples(BATCHINGS, st.integers(1, 5), st.booleans()), min_size=3, max_size=3),
    weights=WEIGHTS,
)
def test_over_three_stages_no_sample_is_repeated_or_skipped(
    stages: list[tuple[tuple[int, int, int], int, bool]], weights: list[Fraction]
) -> None:
    """Stages differ in batch size, micro-batch and replicas; some are interrupted half way.

    Epochs have 10 samples, so most runs cross several.
    """
    samples = Blend([Numbers(name) for name in range(len(weights))], weights)
    found: list[tuple[int, int]] = []
    consumed = 0
    for (batch, micro_batch, replicas), steps, interrupted in stages:
        for part in [steps, 1] if interrupted else [steps]:
            ends = []
            rows: list[list[Any]] = [[] for _ in range(part)]
            for replica in range(replicas):
                batching = Batching(batch, micro_batch, replicas, replica)
                batches = Batches(samples, batching, consumed)
                for step, each in zip(rows, batches, strict=False):
                    step += [row[:2].tolist() for rows_ in each for row in rows_["tokens"]]
                    if step is rows[-1]:
                        break
                ends.append(batches.consumed)
            assert all(len(step) == batch for step in rows)
            found += [(a, b) for step in rows for a, b in step]
            assert all(end == ends[0] for end in ends)
            consumed = ends[0]
    assert consumed == len(found) == len(set(found))
    wanted = [blended(index, weights) for index in range(len(found))]
    assert sorted(found) == sorted(wanted)


@given(batching=BATCHINGS, consumed=st.integers(0, 1000))
def test_replicas_share_a_batch(batching: tuple[int, int, int], consumed: int) -> None:
    batch, micro_batch, replicas = batching
    shares = [
        list(Batching(batch, micro_batch, replicas, replica).micro_batches(consumed))
        for replica in range(replicas)
    ]
    assert {len(indices) for share in shares for indices in share} == {micro_batch}
    indices = [index for share in shares for indices in share for index in indices]
    assert sorted(indices) == list(range(consumed, consumed + batch))


@given(batching=BATCHINGS, other=BATCHINGS, steps=st.integers(1, 4))
def test_a_counter_of_steps_would_not_do(
    batching: tuple[int, int, int], other: tuple[int, int, int], steps: int
) -> None:
    """The negative control: a position that counts steps repeats or skips once batches change."""
    assume(batching[0] != other[0])
    samples = Numbers(0)
    wrong = steps * other[0]
    following = seen(next(iter(Batches(samples, Batching(other[0], other[0]), wrong))))
    found = [*range(steps * batching[0]), *following]
    assert sorted(found) != list(range(len(found)))


def test_a_batch_that_was_given_counts_as_consumed() -> None:
    batches = Batches(Numbers(0), Batching(4, 2))
    assert batches.consumed == 0
    assert seen(next(iter(batches))) == [0, 1, 2, 3]
    assert batches.consumed == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1, 0), "at least 1"),
        ((8, 3, 1, 0), "does not divide"),
        ((8, 2, 3, 0), "does not divide"),
        ((8, 2, 2, 2), "replica 2 of 2"),
    ],
)
def test_batches_that_do_not_divide_are_refused(
    sizes: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Batching(*sizes)


def test_attention_stops_where_positions_restart() -> None:
    hidden = attention_mask(np.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]))
    assert hidden.shape == (2, 1, 5, 5)
    visible = (~hidden).astype(int)[:, 0]
    assert visible[0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert (visible[1] == np.tril(np.ones((5, 5)))).all()


def test_epochs_have_seeds_of_their_own() -> None:
    seeds = {seed_of(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) > 2490
    assert seed_of(1, 2) == seed_of(1, 2)
    assert max(seeds) < 2**32
