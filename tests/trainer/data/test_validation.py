"""A validation reads the same samples whatever the batch, the replicas or the pipeline are."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.trainer.data.batches import Batching
from flmgrow.trainer.data.samples import Sample
from flmgrow.trainer.data.validation import USUAL, read_again, sample_count, validation_batches
from flmgrow.trainer.stage.watching import LogSection


class Numbers:
    """Samples whose tokens are their number."""

    def __init__(self) -> None:
        self.identity = self.earlier = {"name": "numbers"}

    def __getitem__(self, index: int) -> Sample:
        tokens = np.full(2, index)
        return Sample(tokens, tokens, np.ones(2, np.float32), np.arange(2))


@given(
    count=st.integers(1, 200),
    micro_batch=st.integers(1, 5),
    replicas=st.integers(1, 4),
    batches=st.integers(1, 9),
    multiple=st.integers(1, 4),
)
def test_each_sample_counts_once(
    count: int, micro_batch: int, replicas: int, batches: int, multiple: int
) -> None:
    batch = micro_batch * replicas * batches
    seen: list[int] = []
    shapes = set()
    for replica in range(replicas):
        batching = Batching(batch, micro_batch, replicas, replica)
        groups = list(validation_batches(Numbers(), count, batching, multiple))
        shapes.add(tuple(len(group) for group in groups))
        for micro in (micro for group in groups for micro in group):
            assert micro["tokens"].shape == (micro_batch, 2)
            seen += [int(row[0]) for row in micro["tokens"][micro["loss_mask"][:, 0] > 0]]
    assert sorted(seen) == list(range(count))
    (shape,) = shapes  # all replicas take part in every pass through the pipeline
    assert all(size % multiple == 0 for size in shape)


def test_the_batch_changes_nothing() -> None:
    """Not even which samples are taken at once: losses are the same to the last bit."""
    found = [
        [
            micro["tokens"].tolist()
            for group in validation_batches(Numbers(), 50, Batching(batch, 2), 1)
            for micro in group
        ]
        for batch in (2, 8, 64)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("batch", "held_out"), list(product((8, 16), (20, 5000))))
def test_how_many_are_read(batch: int, held_out: int) -> None:
    assert sample_count(LogSection(), batch, held_out) == min(USUAL, held_out)
    assert sample_count(LogSection(validation_samples=300), batch, held_out) == 300
    assert sample_count(LogSection(validation_batches=4), batch, held_out) == 4 * batch


def test_more_than_there_is_is_told() -> None:
    (note,) = read_again(3200, 20)
    assert note == "a validation reads 3,200 samples, 20 are held out: 160.0 times each"
    assert not list(read_again(20, 20))


def test_one_way_to_say_it_at_a_time() -> None:
    with pytest.raises(ValueError, match="either validation_samples or validation_batches"):
        LogSection(validation_samples=3, validation_batches=4)
