# Copyright the flmgrow authors. Licensed under the Apache License, Version 2.0; you may obtain a
# copy at http://www.apache.org/licenses/LICENSE-2.0. Distributed on an "AS IS" basis, without
# warranties or conditions of any kind.
"""FLM for transformers: a pre-norm GPT with rotary positions, xPos and muP multipliers.

Parameters have GPT-2's names and its (in, out) matrices. Differences to GPT-2, each switched by a
field of ``FLMConfig``: rotary positions instead of learned ones, xPos, scores divided by the number
of the block, a multiplier behind the embedding and one in front of the head. There is no dropout.

Shapes: b batch, s new positions, t all positions (cached ones first), n heads, d head_dim.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from .configuration_flm import FLMConfig


def rotary_tables(config, positions, dtype):
    """Return (cos, sin) for queries and (cos, sin) for keys, each (b, 1, s, d / 2).

    With xPos, pair i of a query at position n is scaled by zeta_i ** ((n - centre) / scale_base),
    and that of a key by the inverse, where zeta_i = (2 i / d + 0.4) / 1.4. The scale is the same
    for both channels of a pair, so it can be a part of the tables. They are computed in float32, or
    in ``dtype`` if that is wider.
    """
    wide = torch.promote_types(dtype, torch.float32)
    share = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=wide)
    share = share / config.head_dim
    positions = positions.to(wide)[:, None, :, None]
    angle = positions * config.rotary_theta**-share
    cos, sin = angle.cos(), angle.sin()
    if not config.rotary_use_xpos:
        return (cos, sin), (cos, sin)
    power = (positions - config.rotary_xpos_centre) / config.rotary_xpos_scale_base
    scale = ((share + 0.4) / 1.4) ** power
    return (cos * scale, sin * scale), (cos / scale, sin / scale)


def rotate(x, tables, interleaved):
    """Turn the pairs of ``x`` (b, n, s, d): neighbouring channels, or one from each half."""
    cos, sin = tables
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return turned.to(x.dtype)


def attention_bias(x, past, attention_mask):
    """Return what is added to scores, (b or 1, 1, s, t): 0, or the least number where it is dark.

    A position sees itself and earlier ones, without those that ``attention_mask`` (b, t) has as 0.
    The least number and not -inf: a padded position may see nothing, and must not become NaN.
    """
    slots = torch.arange(past + x.shape[1], device=x.device)
    visible = (slots <= slots[past:, None])[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :].bool()
    bias = torch.zeros(visible.shape, device=x.device, dtype=x.dtype)
    return bias.masked_fill(~visible, torch.finfo(x.dtype).min)


class FLMAttention(nn.Module):
    """Causal attention of block ``layer``, which also is its place in the cache."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.interleaved = config.rotary_interleaved
        width = config.n_head * config.head_dim
        self.c_attn = Conv1D(3 * width, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, width)
        self.scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x, tables, bias, cache):
        """Return what attention adds to the residual stream; ``x`` is (b, s, n_embd)."""
        query, key, value = (
            part.unflatten(-1, (self.n_head, self.head_dim)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        query = rotate(query, tables[0], self.interleaved)
        key = rotate(key, tables[1], self.interleaved)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        context = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=self.scale
        )
        return self.c_proj(context.transpose(1, 2).flatten(-2))


class FLMMLP(nn.Module):
    """The feed-forward layer of a block."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = Conv1D(config.n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_inner)
        self.act = ACT2FN[config.activation_function]

    def forward(self, x):
        """Return what it adds to the residual stream."""
        return self.c_proj(self.act(self.c_fc(x)))


class FLMBlock(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = FLMAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FLMMLP(config)

    def forward(self, x, tables, bias, cache):
        """Return the residual stream behind the block."""
        x = x + self.attn(self.ln_1(x), tables, bias, cache)
        return x + self.mlp(self.ln_2(x))


class FLMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every FLM."""

    config_class = FLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ("FLMBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class FLMModel(FLMPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList([FLMBlock(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        """Return the embedding table."""
        return self.wte

    def set_input_embeddings(self, value):
        """Replace the embedding table."""
        self.wte = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Return the normalised last residual stream; arguments are those usual in transformers.

        Raises ValueError for ``output_attentions``: the kernel keeps no attention weights.
        """
        if output_attentions:
            raise ValueError("FLM keeps no attention weights: leave out output_attentions")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.use_mup:
            x = x * self.config.input_mult
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        tables = rotary_tables(self.config, position_ids, x.dtype)
        bias = attention_bias(x, past, attention_mask)
        states = []
        for block in self.h:
            if output_hidden_states:
                states.append(x)
            x = block(x, tables, bias, past_key_values)
        x = self.ln_f(x)
        result = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states, x) if output_hidden_states else None,
        )
        return result.to_tuple() if return_dict is False else result


class FLMForCausalLM(FLMPreTrainedModel, GenerationMixin):
    """FLM with its head, which is the embedding table if the two are tied."""

    # A dict for transformers 5; version 4 takes the keys of it for a list.
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.transformer = FLMModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.logit_factor = config.output_mult / config.mup_scale_factor if config.use_mup else 1.0
        self.post_init()

    def get_input_embeddings(self):
        """Return the embedding table."""
        return self.transformer.wte

    def set_input_embeddings(self, value):
        """Replace the embedding table."""
        self.transformer.wte = value

    def get_output_embeddings(self):
        """Return the head."""
        return self.lm_head

    def set_output_embeddings(self, value):
        """Replace the head."""
        self.lm_head = value

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """Return what ``forward`` takes for the next step: of the ids, those not in the cache."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        new = kwargs.get("next_sequence_length") or input_ids.shape[1] - past
        first = inputs_embeds is not None and past == 0
        return {
            "input_ids": None if first else input_ids[:, -new:],
            "inputs_embeds": inputs_embeds if first else None,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep") or 0,
        }

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Return logits of the last ``logits_to_keep`` positions (0: of all).

        ``labels`` (b, s) are shifted here, and -100 counts for nothing. For all else see FLMModel.
        """
        base = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        x = base.last_hidden_state[:, -logits_to_keep:]
        logits = self.lm_head(x * self.logit_factor)
        loss = None
        if labels is not None:
            wanted = labels[:, 1:].to(logits.device).flatten()
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=base.past_key_values,
            hidden_states=base.hidden_states,
        )
        return result.to_tuple() if return_dict is False else result
