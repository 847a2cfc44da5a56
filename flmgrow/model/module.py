"""A model in memory: the reference forward over weights that stay there.

Verification reads weights anew for every pass, since models may be larger than memory. To generate
text or to look into a model one wants them at hand, on any device, as a module of torch's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from math import prod

import torch
from torch import Tensor, nn

from flmgrow.errors import UsageError
from flmgrow.model.branches import NO_MASKS, UnitMasks
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import head_logits, residuals
from flmgrow.model.fused import fused_attend
from flmgrow.model.places import Cache, Places


class Model(nn.Module):
    """A decoder whose parameters are the logical tensors of ``config``, with masks applied.

    ``weights`` are by logical name: shapes are those of the axes, gains are what they multiply by
    (never stored around zero). Parameters have the same names with ``_`` for ``.``, and the dtype
    and device of the weights.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], masks: UnitMasks = NO_MASKS
    ) -> None:
        super().__init__()
        self.config = config
        for name, value in weights.items():
            self.register_parameter(_attribute(name), nn.Parameter(value))
        for field in fields(UnitMasks):
            self.register_buffer(f"{field.name}_mask", getattr(masks, field.name))

    @property
    def masks(self) -> UnitMasks:
        """The multipliers of units; None where there is no mask."""
        return UnitMasks(
            **{field.name: getattr(self, f"{field.name}_mask") for field in fields(UnitMasks)}
        )

    def new_cache(self) -> Cache:
        """Return an empty cache for one batch of texts."""
        return Cache(self.config.layers)

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, places: Places | None = None
    ) -> Tensor:
        """Return the logits (b, s, v) of every true id for ``tokens`` (b, s).

        Raises:
            UsageError: As ``residual`` does.
        """
        return self.logits_of(self.residual(tokens, cache, places))

    def residual(
        self, tokens: Tensor, cache: Cache | None = None, places: Places | None = None
    ) -> Tensor:
        """Return the last residual (b, s, h) for ``tokens`` (b, s).

        With a ``cache``, the tokens follow those that it was given before, unless ``places`` says
        where they stand.

        Raises:
            UsageError: For more positions than a model with learned positions has.
        """
        if self.config.positions == "learned":
            end = tokens.shape[-1] + (0 if cache is None else cache.length)
            if places is not None:
                end = int(places.positions.max()) + 1
            self._check_end(end)
        *_, last = residuals(
            self.config, self, tokens, self.masks, cache, places, attending=fused_attend
        )
        return last

    def _check_end(self, end: int) -> None:
        if end > self.config.max_positions:
            raise UsageError(
                f"{end} tokens: the model has {self.config.max_positions} learned positions",
                "give it a shorter text",
            )

    def logits_of(self, x: Tensor) -> Tensor:
        """Return the logits (b, s, v) of every true id, from last residuals ``x`` (b, s, h)."""
        return head_logits(self.config, self, x, self.masks)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a logical tensor (of one layer, without the layer axis), in its own shape."""
        value: Tensor = getattr(self, _attribute(name))
        return value if layer is None else value[layer]

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return rows of a table, with the shape of ``ids`` and the table's columns behind."""
        return self.tensor(name)[ids]

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        """Yield a tensor (of one layer) as one matrix (rows, columns); its columns are the last
        ``inputs`` axes.
        """
        value = self.tensor(name, layer)[:stop]
        yield value.reshape(-1, prod(value.shape[value.dim() - inputs :]))

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """Return ``tokens`` (b, s) followed by the likeliest ids, ``count`` of them: (b, s+count).

        Raises:
            UsageError: As ``forward`` does.
        """
        cache, step = self.new_cache(), tokens
        for _ in range(count):
            step = self.logits_of(self.residual(step, cache)[:, -1:]).argmax(-1)
            tokens = torch.cat((tokens, step), -1)
        return tokens


def _attribute(name: str) -> str:
    return name.replace(".", "_")
