"""Comparing the gradients of a model before and after it was grown.

Equal outputs do not mean equal training: comparing the gradients before and after a growth. A fresh
parameter whose gradient stays zero never learns, and old parameters whose gradients or whose global
norm change take another first step. Both are measured here in float64, with the whole models in
memory. A fresh parameter may well have no gradient at the first step (its partner is still zero and
wakes first; a mask at 0 hides it), so this is a report, not a verdict.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.model.axes import Axis, Box, full_box
from flmgrow.model.forward import logits
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import LogicalTensor
from flmgrow.operators.growth import Growth, moves
from flmgrow.surgery.weights import CheckpointWeights, unit_masks


class LeafWeights:
    """All weights of a checkpoint as float64 leaves that collect gradients."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        lazy = CheckpointWeights(checkpoint, torch.float64)
        self.leaves: dict[tuple[str, int | None], Tensor] = {}
        for name, tensor in checkpoint.reader.tensors.items():
            layers = range(checkpoint.config.layers) if tensor.layered else (None,)
            for layer in layers:
                self.leaves[name, layer] = lazy.tensor(name, layer).clone().requires_grad_()

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer), in its own shape."""
        return self.leaves[name, layer]

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table, with the shape of ``ids`` and the table's columns behind."""
        return self.leaves[name, None][ids]

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        """Yield a tensor as a matrix (rows, columns), in one part."""
        leaf = self.leaves[name, layer][:stop]
        yield leaf.reshape(-1, math.prod(leaf.shape[leaf.ndim - inputs :]))


Gradients = Mapping[tuple[str, int | None], Tensor]


def gradients(
    checkpoint: Checkpoint, masks: Mapping[Dimension, Mask], tokens: Tensor
) -> tuple[float, Gradients]:
    """Return the next-token loss on ``tokens`` (b, s) and the gradient of every weight."""
    weights = LeafWeights(checkpoint)
    scores = logits(
        checkpoint.config, weights, tokens, unit_masks(masks, checkpoint, torch.float64)
    )
    loss = functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    found = {
        key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for key, leaf in weights.leaves.items()
    }
    return float(loss.detach()), found


def global_norm(found: Gradients) -> float:
    """Return the norm over all gradients, which clipping looks at."""
    return float(torch.stack([g.square().sum() for g in found.values()]).sum().sqrt())


@dataclass(frozen=True)
class GradientReport:
    """Gradients after a growth against those before.

    ``old_error`` is the largest difference of an unscaled old entry's gradient, relative to the
    largest old gradient of its tensor. ``fresh`` counts fresh entries, ``alive`` those with a
    gradient now.
    """

    old_norm: float
    new_norm: float
    old_error: float
    fresh: int
    alive: int

    def __str__(self) -> str:
        share = f"{self.alive / self.fresh:.1%} of {self.fresh:,}" if self.fresh else "none"
        return (
            f"global norm {self.old_norm:.6g} -> {self.new_norm:.6g}, old entries off by at most "
            f"{self.old_error:.1e}; fresh entries with a gradient now: {share}"
        )


def _entries(
    growth: Growth, tensor: LogicalTensor, layer: int | None, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...] | None, int | None]]:
    """Yield (entries of the new tensor, the old entries they are or None if fresh, old layer)."""
    box = full_box(shape)
    fresh_layer = False
    if layer is not None:
        box = Box(((layer, layer + 1), *box.ranges))
        layer_map = growth.maps.get(Axis.LAYER)
        if layer_map is not None:
            sources = layer_map.source.tolist()
            fresh_layer = sources.index(sources[layer]) != layer
    skip = 0 if layer is None else 1
    for move in moves(growth, tensor, box):
        cut = move.box.relative_to(box)[skip:]
        if move.fill is not None or move.old is None or fresh_layer:
            yield cut, None, None
        else:
            spans = tuple(slice(*span) for span in move.old.ranges)
            yield cut, spans[skip:], move.old.ranges[0][0] if skip else None


def compare_gradients(
    source: Checkpoint,
    result: Checkpoint,
    growth: Growth,
    masks: Mapping[Dimension, Mask],
    tokens: Tensor,
) -> GradientReport:
    """Return how the gradients of ``result`` relate to those of ``source`` on the same ``tokens``
    (b, s).
    """
    _, before = gradients(source, {}, tokens)
    _, after = gradients(result, masks, tokens)
    fresh = alive = 0
    worst = 0.0
    for (name, layer), gradient in after.items():
        tensor = result.reader.tensors[name]
        scaled = growth.changes(tensor)
        for cut, old, old_layer in _entries(growth, tensor, layer, tuple(gradient.shape)):
            if old is None:
                fresh += gradient[cut].numel()
                alive += int(gradient[cut].count_nonzero())
            elif not scaled:
                reference = before[growth.source_name(tensor), old_layer]
                gap = (gradient[cut] - reference[old]).abs().max()
                worst = max(worst, float(gap / reference.abs().max().clamp(min=1e-30)))
    return GradientReport(global_norm(before), global_norm(after), worst, fresh, alive)
