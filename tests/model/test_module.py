"""A model in memory computes what the reference forward does, all at once or token by token."""

from dataclasses import replace

import pytest
import torch
from growing import tokens_for
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, DictWeights, logical_weights
from strategies import any_config, decoders, examples

from flmgrow.errors import UsageError
from flmgrow.model.branches import UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.module import Model


def model_of(config: ModelConfig, masks: UnitMasks | None = None) -> Model:
    weights = {k: torch.from_numpy(v) for k, v in logical_weights(config).items()}
    return Model(config, weights) if masks is None else Model(config, weights, masks)


def reference(config: ModelConfig, tokens: torch.Tensor, masks: UnitMasks) -> torch.Tensor:
    weights = {k: torch.from_numpy(v) for k, v in logical_weights(config).items()}
    return logits(config, DictWeights(weights), tokens, masks)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_reference_forward(name: str) -> None:
    config = CONFIGS[name]
    masks = UnitMasks(ffn=torch.linspace(0, 1, config.ffn, dtype=torch.float64))
    tokens = tokens_for(config.vocab, 7)
    wanted = reference(config, tokens, masks)
    assert torch.allclose(model_of(config, masks)(tokens), wanted, rtol=0, atol=1e-12)


@examples(20)
@given(any_config() | decoders(), st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_with_a_cache_any_cuts_of_a_text_give_the_same(
    config: ModelConfig, cuts: list[int]
) -> None:
    model, tokens = model_of(config), tokens_for(config.vocab, sum(cuts))
    if config.positions == "learned" and sum(cuts) > config.max_positions:
        return
    cache = model.new_cache()
    parts = [model(part, cache) for part in torch.split(tokens, cuts, -1)]
    assert cache.length == sum(cuts)
    whole = model(tokens).detach()
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12 * float(whole.abs().max()))


def test_without_what_the_cache_holds_it_is_another_text() -> None:
    model, tokens = model_of(CONFIGS["llama"]), tokens_for(CONFIGS["llama"].vocab, 8)
    assert not torch.allclose(model(tokens[:, 4:]), model(tokens)[:, 4:], atol=1e-3)


def test_the_likeliest_ids_follow() -> None:
    config = CONFIGS["llama"]
    model, tokens = model_of(config), tokens_for(config.vocab, 3)
    wanted = tokens
    for _ in range(5):
        wanted = torch.cat((wanted, model(wanted)[:, -1:].argmax(-1)), -1)
    assert torch.equal(model.generate(tokens, 5), wanted)


def test_learned_positions_end() -> None:
    config = replace(CONFIGS["gpt"], positions="learned")
    model = model_of(config)
    with pytest.raises(UsageError, match="learned positions"):
        model(tokens_for(config.vocab, config.max_positions + 1))


def test_it_is_a_module_of_torchs() -> None:
    config = CONFIGS["llama"]
    model = model_of(config).to(torch.bfloat16)
    assert model(tokens_for(config.vocab, 5)).dtype == torch.bfloat16
    loss = model_of(config)(tokens_for(config.vocab, 5)).logsumexp(-1).sum()
    loss.backward()
    other = model_of(config)
    assert other.load_state_dict(model_of(config).state_dict()).missing_keys == []
