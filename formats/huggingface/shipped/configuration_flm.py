# Copyright the flmgrow authors. Licensed under the Apache License, Version 2.0; you may obtain a
# copy at http://www.apache.org/licenses/LICENSE-2.0. Distributed on an "AS IS" basis, without
# warranties or conditions of any kind.
"""Configuration of FLM: a GPT with rotary positions, xPos, muP multipliers and layered scores.

Fields have the names they have in the published configuration of FLM-101B. Three are added:
``head_dim``, ``rotary_interleaved`` and ``rotary_xpos_centre``.
"""

from transformers import PretrainedConfig


class FLMConfig(PretrainedConfig):
    """Sizes and constants of an FLM.

    Args:
        vocab_size: Number of token ids.
        n_embd: Width of the residual stream.
        n_layer: Number of blocks.
        n_head: Attention heads in a block.
        n_inner: Units of a feed-forward layer; 4 * ``n_embd`` if None.
        n_positions: Context the model was trained on. Nothing breaks beyond it.
        head_dim: Width of a head; ``n_embd // n_head`` if None.
        activation_function: Any name in transformers' ``ACT2FN``.
        layer_norm_epsilon: Added to the variance in every LayerNorm.
        relative_encoding: Kind of positions; "rotary" is the only one.
        rotary_theta: Base of the rotary frequencies.
        rotary_interleaved: Rotate neighbouring channels instead of the two halves of a head.
        rotary_use_xpos: Also scale queries up and keys down with their position, by channel.
        rotary_xpos_scale_base: Positions over which xPos scales once.
        rotary_xpos_centre: Position that xPos leaves as it is. Scores depend on distances only, so
            this moves nothing but rounding; it is fixed, so that cached keys stay right.
        scale_attn_weights: Divide scores by the square root of ``head_dim``.
        scale_attn_by_inverse_layer_idx: Divide scores of block i, counted from 0, by i + 1.
        use_mup: Apply the multipliers below; without it they have no effect.
        mup_base_width: Width for which muP's multipliers are 1. Only recorded.
        mup_scale_factor: What the logits are divided by: ``n_embd / mup_base_width``, or 1 without
            a base width, if None.
        input_mult: Multiplies the embeddings.
        output_mult: Multiplies the logits.
        initializer_range: Standard deviation of new weights.
        tie_word_embeddings: Use the embedding table as the head.

    """

    model_type = "flm"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 (transformers reads a plain dict)
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size=100352,
        n_embd=10240,
        n_layer=80,
        n_head=80,
        n_inner=None,
        n_positions=2048,
        head_dim=None,
        activation_function="gelu_fast",
        layer_norm_epsilon=1e-5,
        relative_encoding="rotary",
        rotary_theta=10000.0,
        rotary_interleaved=False,
        rotary_use_xpos=False,
        rotary_xpos_scale_base=512.0,
        rotary_xpos_centre=0,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        use_mup=False,
        mup_base_width=None,
        mup_scale_factor=None,
        input_mult=1.0,
        output_mult=1.0,
        initializer_range=0.016,
        use_cache=True,
        tie_word_embeddings=True,
        **kwargs,
    ):
        if relative_encoding != "rotary":
            raise ValueError(f"relative_encoding is {relative_encoding!r}, wanted 'rotary'")
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = 4 * n_embd if n_inner is None else n_inner
        self.n_positions = n_positions
        self.head_dim = n_embd // n_head if head_dim is None else head_dim
        self.activation_function = activation_function
        self.layer_norm_epsilon = layer_norm_epsilon
        self.relative_encoding = relative_encoding
        self.rotary_theta = rotary_theta
        self.rotary_interleaved = rotary_interleaved
        self.rotary_use_xpos = rotary_use_xpos
        self.rotary_xpos_scale_base = rotary_xpos_scale_base
        self.rotary_xpos_centre = rotary_xpos_centre
        self.scale_attn_weights = scale_attn_weights
        self.scale_attn_by_inverse_layer_idx = scale_attn_by_inverse_layer_idx
        self.use_mup = use_mup
        self.mup_base_width = mup_base_width
        if mup_scale_factor is None:
            mup_scale_factor = n_embd / mup_base_width if mup_base_width else 1.0
        self.mup_scale_factor = mup_scale_factor
        self.input_mult = input_mult
        self.output_mult = output_mult
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
