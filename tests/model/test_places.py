"""Tokens compute the same wherever they lie: behind a shared beginning, or at their own places."""

import pytest
import torch
from growing import tokens_for
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, logical_weights
from strategies import any_config, decoders, examples

from flmgrow.model.branches import attend
from flmgrow.model.config import ModelConfig
from flmgrow.model.fused import fused_attend
from flmgrow.model.module import Model
from flmgrow.model.places import Places

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def model_of(config: ModelConfig) -> Model:
    weights = {k: torch.from_numpy(v) for k, v in logical_weights(config).items()}
    return Model(config, weights).eval()


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))


@examples(20)
@given(
    any_config() | decoders(), st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 4), st.booleans(),
)  # fmt: skip
@torch.no_grad()
def test_ends_behind_one_beginning_do_not_see_each_other(
    config: ModelConfig, ends: list[int], first: int, cached: bool
) -> None:
    if config.positions == "learned" and first + max(ends) > config.max_positions:
        return
    model, tokens = model_of(config), tokens_for(config.vocab, first + sum(ends), batch=1)
    begin, *others = torch.split(tokens, [first, *ends], -1)
    sees = torch.zeros(tokens.shape[-1], tokens.shape[-1], dtype=torch.bool)
    sees[:, :first] = True
    sees[:first, :first] = torch.ones(first, first, dtype=torch.bool).tril()
    start, positions = first, [torch.arange(first)]
    for end in ends:
        sees[start : start + end, start : start + end] = torch.ones(end, end).tril().bool()
        positions.append(torch.arange(first, first + end))
        start += end
    places = torch.cat(positions)
    if cached:
        cache = model.new_cache()
        model(begin, cache)
        found = model(tokens[:, first:], cache, Places(places[first:], sees[first:]))
    else:
        found = model(tokens, places=Places(places, sees))[:, first:]
    for part, own in zip(torch.split(found, ends, 1), others, strict=True):
        assert close(part, model(torch.cat((begin, own), -1))[:, first:])


@examples(20)
@given(
    any_config() | decoders(),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 4),
)
@torch.no_grad()
def test_texts_of_many_lengths_go_on_side_by_side(
    config: ModelConfig, lengths: list[int], more: int
) -> None:
    if config.positions == "learned" and max(lengths) + more > config.max_positions:
        return
    model, longest = model_of(config), max(lengths)
    texts = tokens_for(config.vocab, longest + more, batch=len(lengths))
    cache = model.new_cache()
    model(texts[:, :longest], cache)  # what is behind the end of a text is overwritten
    for step in range(more):
        slots = torch.tensor(lengths)[:, None] + step
        sees = torch.arange(longest + step + 1)[None, None] <= slots[..., None]
        known = max(cache.length, int(slots.max()) + 1)
        places = Places(slots, sees[..., :known], slots)
        found = model(texts.gather(1, slots), cache, places)
        for row, length in enumerate(lengths):
            wanted = model(texts[row : row + 1, : length + step + 1])[:, -1:]
            assert close(found[row : row + 1], wanted)


@pytest.mark.parametrize("dtype", TOLERANCES)
@examples(30)
@given(st.data())
def test_the_kernel_attends_as_the_reference(dtype: torch.dtype, data: st.DataObject) -> None:
    size = st.integers(1, 4)
    batch, groups, queries, tokens = (data.draw(size) for _ in range(4))
    known, kind = data.draw(st.integers(0, 3)), data.draw(st.sampled_from(["all", "one", "each"]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    query = torch.randn(batch, groups, queries, tokens, 8).to(dtype)
    key, value = torch.randn(2, batch, groups, known + tokens, 8).to(dtype)
    shape = (tokens, known + tokens) if kind == "one" else (batch, tokens, known + tokens)
    sees = None if kind == "all" else (torch.rand(shape) < 0.5)
    if sees is not None:
        sees[..., 0] = True
    found = fused_attend(query, key, value, 0.3, sees)
    assert found.shape == query.shape
    assert torch.allclose(found, attend(query, key, value, 0.3, sees), atol=TOLERANCES[dtype])


def test_a_text_keeps_what_it_knows_when_others_leave() -> None:
    config = CONFIGS["llama"]
    model, tokens = model_of(config), tokens_for(config.vocab, 6, batch=3)
    cache, other = model.new_cache(), model.new_cache()
    model(tokens[:, :4], cache)
    cache = cache.rows(torch.tensor([2, 0]))
    model(tokens[[2, 0], :4], other)
    assert torch.equal(model(tokens[[2, 0], 4:], cache), model(tokens[[2, 0], 4:], other))
