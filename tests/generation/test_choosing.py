"""Tokens are drawn with the probabilities that they should have, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.generation.choosing import Choice, choose, probabilities

LOGITS = st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9)


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values])


@given(LOGITS, st.floats(0.1, 4))
def test_temperature_divides_the_logits(values: list[float], temperature: float) -> None:
    found = probabilities(row(values), Choice(temperature))
    wanted = (row(values).double() / temperature).softmax(-1)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)


@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_so_many_and_their_ratios(values: list[float], count: int) -> None:
    whole = probabilities(row(values), Choice(1.0))[0]
    found = probabilities(row(values), Choice(1.0, top_k=count))[0]
    kept = found > 0
    assert kept.sum() >= min(count, len(values))
    assert not kept.all() or count >= len(values) or len(set(values)) < len(values)
    assert whole[kept].min() >= whole[~kept].max() if not kept.all() else True
    assert torch.allclose(found[kept], whole[kept] / whole[kept].sum(), rtol=1e-12)


@given(LOGITS, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_add_up(values: list[float], share: float) -> None:
    whole = probabilities(row(values), Choice(1.0))[0]
    kept = probabilities(row(values), Choice(1.0, top_p=share))[0] > 0
    total = float(whole[kept].sum())
    assert total >= share - 1e-12
    assert total - float(whole[kept].min()) < share + 1e-12
    assert kept[whole.argmax()]


@given(st.integers(0, 2**40), st.integers(0, 99))
def test_draws_belong_to_seed_and_text(seed: int, number: int) -> None:
    choice = Choice(1.0, seed=seed)
    first = torch.rand(3, generator=choice.generator(number))
    assert torch.equal(first, torch.rand(3, generator=choice.generator(number)))
    assert not torch.equal(first, torch.rand(3, generator=choice.generator(number + 1)))
    assert not torch.equal(
        first, torch.rand(3, generator=Choice(1.0, seed=seed + 1).generator(number))
    )


def test_draws_follow_the_probabilities() -> None:
    choice = Choice(0.7, top_k=3)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    drawn = choose(logits, choice, [choice.generator(number) for number in range(4000)])
    found = drawn.bincount(minlength=4) / 4000
    wanted = probabilities(logits[:1], choice)[0]
    assert found[3] == 0
    assert (found - wanted).abs().max() < 4 * 0.5 / 4000**0.5  # four standard deviations


def test_the_likeliest_is_taken_without_a_temperature() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [5.0, 3.0, 2.0]])
    assert choose(logits, Choice(), []).tolist() == [1, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1},
     {"top_k": 0}, {"seed": -1}],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Choice(**wrong)  # type: ignore[arg-type]
