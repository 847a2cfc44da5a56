"""Comparing what two models compute, layer by layer, through one reference forward.

Both models advance together, so that the first layer that differs is known and only two residual
streams are in memory. Where the second grew from the first, old layers and old channels are found
through its axis maps; under LayerNorm the mean over channels is invisible to the model and is left
out of the comparison.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.model.axes import Axis
from flmgrow.model.branches import UnitMasks
from flmgrow.model.forward import head_input, head_name, logit_blocks, residuals
from flmgrow.model.masks import Dimension, Mask
from flmgrow.surgery.execution import Progress
from flmgrow.surgery.new_ids import NewIds, NewIdTotals
from flmgrow.surgery.weights import BLOCK, CPU, CheckpointWeights, unit_masks
from flmgrow.text import Found, Pass, Text

VOCAB_BLOCK = 4096
"""Ids compared at once."""

ROW_ROUNDING = 4
"""How many times the norm of a logit's terms, each rounded, the logit may be off.

All that 16 terms can come to; of more, which add up as independent errors do, 6.9 deviations.
"""


@dataclass(frozen=True)
class Side:
    """One of two models to compare: a checkpoint, its masks, and the dtype it computes in.

    At most ``block`` elements of a weight are in memory; ``progress`` is told the bytes read.
    ``device`` is where it computes: that of its tokens.
    """

    checkpoint: Checkpoint
    masks: Mapping[Dimension, Mask]
    dtype: torch.dtype
    block: int = BLOCK
    progress: Progress = lambda _: None
    device: torch.device = CPU

    @property
    def weights(self) -> CheckpointWeights:
        """The weights, in the dtype to compute in."""
        return CheckpointWeights(
            self.checkpoint, self.dtype, self.block, self.progress, self.device
        )

    @property
    def unit_masks(self) -> UnitMasks:
        """The multipliers its masks mean."""
        return unit_masks(self.masks, self.checkpoint, self.dtype, self.device)

    def residuals(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield its residual streams (b, s, h) for ``tokens`` (b, s), as float64."""
        for x in residuals(self.checkpoint.config, self.weights, tokens, self.unit_masks):
            yield x.double()

    def logits(self, x: Tensor, vocab: int) -> Iterator[Tensor]:
        """Yield logits (b, s, ids) from the last residual ``x`` (b, s, h), as float64, in blocks of
        VOCAB_BLOCK ids.
        """
        rest = x.new_zeros((*x.shape[:-1], 0), dtype=torch.float64)
        config, masks = self.checkpoint.config, self.unit_masks
        for block in logit_blocks(config, self.weights, x.to(self.dtype), vocab, masks):
            rest = torch.cat((rest, block.double()), -1)
            while rest.shape[-1] >= VOCAB_BLOCK:
                yield rest[..., :VOCAB_BLOCK]
                rest = rest[..., VOCAB_BLOCK:]
        if rest.shape[-1]:
            yield rest

    def mean_rounding(self, x: Tensor, ids: int) -> Tensor:
        """Return how far logits (b, s) may be off, from the last residual, whose row is the mean of
        those of ids 0 to ``ids``, rounded when it was stored.
        """
        config = self.checkpoint.config
        total = x.new_zeros((), dtype=torch.float64)
        for part in self.weights.parts(head_name(config), stop=ids):
            total = total + part.double().sum(0)
        y = head_input(config, self.weights, x.to(self.dtype), self.unit_masks).double()
        unit = torch.finfo(getattr(torch, self.checkpoint.dtype)).eps / 2
        terms: Tensor = y * (total / ids)
        return ROW_ROUNDING * unit * terms.square().sum(-1).sqrt()


@dataclass(frozen=True)
class Difference:
    """How far the second model is from the first.

    Logits are compared over the first's vocabulary. Losses are mean next-token cross entropies in
    nats, and ``argmax_agreement`` is the share of positions where both find the same id likeliest:
    each model over all of its own ids. ``first_layer`` is the first old layer (-1: the embedding)
    whose residual stream differs by more than the tolerance, or None. ``new_ids`` is None if the
    second model has none.
    """

    max_logit: float
    largest_logit: float
    loss_difference: float
    loss: float
    argmax_agreement: float
    first_layer: int | None
    new_ids: NewIds | None = None


class _Totals:
    """Running maximum, loss and argmax over blocks of the vocabulary."""

    def __init__(self, tokens: Tensor) -> None:
        self.next = tokens[:, 1:]
        self.log_sum = torch.full_like(tokens, -torch.inf, dtype=torch.float64)
        self.chosen = torch.zeros_like(self.next, dtype=torch.float64)
        self.best = self.log_sum.clone()
        self.argmax = torch.zeros_like(tokens)

    def add(self, logits: Tensor, start: int) -> None:
        self.log_sum = torch.logaddexp(self.log_sum, logits.logsumexp(-1))
        best, index = logits.max(-1)
        better = best > self.best
        self.argmax = torch.where(better, index + start, self.argmax)
        self.best = torch.where(better, best, self.best)
        local = self.next - start
        inside = (local >= 0) & (local < logits.shape[-1])
        picked = logits[:, :-1].gather(-1, local.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
        self.chosen = torch.where(inside, picked, self.chosen)

    def loss(self) -> float:
        return float((self.log_sum[:, :-1] - self.chosen).mean())


def _visible(x: Tensor, channels: int, layernorm: bool) -> Tensor:
    old = x[..., :channels]
    return old - old.mean(-1, keepdim=True) if layernorm else old


def _aligned(
    first: Side, second: Side, tokens: Tensor, places: Mapping[int, int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (old layer, residual, residual) where the two models must agree; -1 is the embedding.

    The last item, numbered with the first model's number of layers, has both models' last
    residuals.
    """
    streams = first.residuals(tokens), second.residuals(tokens)
    at, b = -1, next(streams[1])
    for layer, a in enumerate(streams[0], start=-1):
        for _ in range(at, places.get(layer, layer)):
            at, b = at + 1, next(streams[1], b)
        yield layer, a, b
    for rest in streams[1]:
        b = rest
    yield first.checkpoint.config.layers, a, b


def check_sizes(first: Checkpoint, second: Checkpoint) -> None:
    """Check that the second model has all that the first one is compared by.

    Raises:
        UsageError: If it has fewer channels, ids, or learned positions.
    """
    axes = [Axis.HIDDEN, Axis.VOCAB]
    axes += [Axis.POSITION] if second.config.positions == "learned" else []
    for axis in axes:
        has, wanted = second.config.sizes[axis], first.config.sizes[axis]
        if has < wanted:
            order = "the source comes first, then what was made of it"
            padding = Text("; if only so many of its rows are ids, ", Pass("true_vocab_size", has))
            raise UsageError(
                Text(f"{axis} ", Found(has)),
                Text(order, padding) if axis is Axis.VOCAB else order,
                where=second.path,
                wanted=f"at least {wanted}, as {first.name} has",
            )


def compare(
    first: Side, second: Side, tokens: Tensor, places: Mapping[int, int], tolerance: float
) -> Difference:
    """Run both models on ``tokens`` (b, s) and return how far they are apart.

    ``places[i]`` is the second model's layer that is the first's layer ``i``. The tolerance only
    serves to name the first layer that differs.
    """
    config, tokens = first.checkpoint.config, tokens.to(first.device)
    layernorm = config.norm == "layernorm"
    first_layer = None
    for layer, a, b in _aligned(first, second, tokens, places):
        old, new = (_visible(x, config.hidden, layernorm) for x in (a, b))
        gap = (old - new).abs().max() / old.abs().max().clamp(min=1)
        if first_layer is None and not gap <= tolerance and layer < config.layers:
            first_layer = layer
    return _compare_logits(first, second, a, b, tokens, first_layer)


def _compare_logits(
    first: Side, second: Side, a: Tensor, b: Tensor, tokens: Tensor, first_layer: int | None
) -> Difference:
    """Compare the logits of two last residuals, block by block of the vocabulary."""
    vocab = first.checkpoint.config.vocab
    everything = max(vocab, second.checkpoint.config.vocab)
    totals = (_Totals(tokens), _Totals(tokens))
    made = second.mean_rounding(b, vocab) if everything > vocab else torch.zeros_like(tokens)
    new_ids = NewIdTotals(made)
    worst, largest, start = 0.0, 0.0, 0
    blocks = zip_longest(first.logits(a, vocab), second.logits(b, everything))
    for old, new in blocks:
        common = 0 if old is None else old.shape[-1]
        new_ids.add(new[..., :common], new[..., common:])
        totals[1].add(new, start)
        if old is not None:
            gap = (old - new[..., :common]).abs().max()
            worst = max(worst, float(gap)) if torch.isfinite(gap) else float("inf")
            largest = max(largest, float(old.abs().max()))
            totals[0].add(old, start)
        start += new.shape[-1]
    losses = [total.loss() for total in totals]
    return Difference(
        max_logit=worst,
        largest_logit=largest,
        loss_difference=losses[1] - losses[0],
        loss=losses[0],
        argmax_agreement=float((totals[0].argmax == totals[1].argmax).double().mean()),
        first_layer=first_layer,
        new_ids=new_ids.result(),
    )
