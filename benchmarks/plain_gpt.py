"""What speed would a trainer have that is only PyTorch? The measure for one that is not.

The model that ``trainer/megatron/model.py`` builds of megatron-core's parts (pre-norm, LayerNorm
with biases, rotary positions, GELU, tied head), on one device and without any parallelism, as one
would write it for speed: batch first, torch's own attention, AdamW in one kernel. It takes
megatron-core's weights and returns the same loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from training_work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Step, Work

from flmgrow.model.config import ModelConfig


class Block(nn.Module):
    """One layer: attention and FFN, each behind a norm and beside the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.heads = config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, config.norm_eps) for _ in range(2))
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, config.ffn)
        self.down = nn.Linear(config.ffn, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the stream ``x`` (batch, length, hidden) behind this layer."""
        fused = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        query, key, value = fused.unbind(2)
        context = functional.scaled_dot_product_attention(
            rotated(query, cos, sin), rotated(key, cos, sin), value, is_causal=True
        )
        x = x + self.out(context.transpose(1, 2).flatten(2))
        wide: Tensor = functional.gelu(self.up(self.norms[1](x)))
        return torch.add(x, self.down(wide))


class PlainGpt(nn.Module):
    """The whole model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.table = nn.Embedding(config.vocab, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, config.norm_eps)
        half = torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = torch.outer(torch.arange(config.max_positions), config.rotary.base**-half)
        angles = torch.cat((angles, angles), -1)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of ``labels``, both (batch, length)."""
        x = self.table(tokens)
        length = tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = functional.linear(self.norm(x), self.table.weight)
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of megatron-core's model, in which q, k, v alternate by head."""
        own = {"table.weight": state["embedding.word_embeddings.weight"]}
        names = {"decoder.final_layernorm": "norm"}
        for layer in range(len(self.blocks)):
            places = {
                "input_layernorm": "norms.0", "self_attention.linear_qkv": "qkv",
                "self_attention.linear_proj": "out", "pre_mlp_layernorm": "norms.1",
                "mlp.linear_fc1": "up", "mlp.linear_fc2": "down",
            }  # fmt: skip
            for theirs, mine in places.items():
                names[f"decoder.layers.{layer}.{theirs}"] = f"blocks.{layer}.{mine}"
        for theirs, mine in names.items():
            for kind in ("weight", "bias"):
                own[f"{mine}.{kind}"] = state[f"{theirs}.{kind}"]
        for name, values in own.items():
            if ".qkv." in name:
                heads = torch.unflatten(values, 0, (self.heads, 3, -1))
                own[name] = heads.transpose(0, 1).flatten(0, 2)
        own |= {"cos": self.cos, "sin": self.sin}
        self.load_state_dict(own)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x`` (batch, heads, length, head_dim) with its halves rotated against each other."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def plain_side(work: Work) -> Step:
    """Build the model, and a plain loop around it."""
    model = PlainGpt(work.config)
    model.load(torch.load(work.weights))
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
    tokens, labels = work.tokens_and_labels()

    def step() -> float:
        loss = model(tokens, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss)

    return step
