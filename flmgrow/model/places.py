"""Where tokens stand in their texts, what each of them sees, and what was computed of those before.

Usually the tokens of a batch are texts from their beginning, or follow those before them, and each
sees what stands before it. Two uses want more. Texts of different lengths that go on together stand
at different positions. And texts with one beginning share it: their ends stand at the same
positions behind it, and must not see each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Places:
    """Where the tokens (b, s) of a pass stand: at ``positions``, (s,) or (b, s), of their texts.

    ``sees`` (s, t) or (b, s, t) says which of the t tokens that are known, these among them, each
    of these sees; None for all that are known before it, and itself. ``slots`` (b, s) is where a
    cache puts them, ``sees`` being of all slots; None for behind those it has.
    """

    positions: Tensor
    sees: Tensor | None = None
    slots: Tensor | None = None


def following(tokens: Tensor, first: int = 0) -> Places:
    """Return the places of ``tokens`` (b, s) that follow ``first`` others."""
    return Places(torch.arange(first, first + tokens.shape[-1], device=tokens.device))


def within(window: int, places: Places, keys: Tensor) -> Tensor:
    """Return which of the tokens at ``keys`` (t,) or (b, t) those at ``places`` see, (s, t) or
    (b, s, t), where none sees further back than ``window`` tokens, itself among them.
    """
    near = places.positions[..., :, None] - keys[..., None, :] < window
    sees = places.sees
    if sees is None:
        known = near.shape[-1] - near.shape[-2]
        sees = torch.ones(near.shape[-2:], dtype=torch.bool, device=near.device).tril(known)
    return sees & near


class Cache:
    """Keys and values of the tokens that a model was given so far, layer by layer.

    Of a model with ``layers`` layers; one cache belongs to one batch of texts.
    """

    def __init__(self, layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._lengths = [0] * layers
        self._positions: Tensor | None = None

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self._layers)

    @property
    def length(self) -> int:
        """The number of slots that all layers have filled."""
        return self._lengths[-1]

    def place(self, places: Places) -> Tensor:
        """Return where all tokens stand that are known with those at ``places``: (t,) or (b, t).

        To be called once before the layers of a pass, in every pass or in none.
        """
        now, slots = places.positions, places.slots
        before = now[..., :0] if self._positions is None else self._positions
        if slots is not None and places.sees is not None:
            rows = torch.arange(len(slots), device=slots.device)[:, None]
            more = places.sees.shape[-1] - before.shape[-1]
            found = pad(before.expand(len(slots), before.shape[-1]), (0, more))
            found[rows, slots] = now.expand(slots.shape)
        elif before.dim() == now.dim():
            found = torch.cat((before, now), -1)
        else:
            texts = (before if before.dim() == 2 else now).shape[0]
            found = torch.cat([each.expand(texts, each.shape[-1]) for each in (before, now)], -1)
        self._positions = found
        return found

    def positions(self, length: int) -> Tensor | None:
        """Return where its tokens stand, (b, length), zeros behind those it has; None if nobody
        asked before.
        """
        if self._positions is None or self._layers[0] is None:
            return None
        texts, have = len(self._layers[0][0]), self._positions.shape[-1]
        return pad(self._positions.expand(texts, have), (0, length - have))

    def extend(
        self, layer: int, key: Tensor, value: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Put keys and values (b, g, s, d) into a layer, and return all it has, (b, g, t, d).

        They go behind those of the layer, or into the slots of ``places``, over what is there.
        """
        known, slots = self._lengths[layer], places.slots
        if slots is None or places.sees is None:
            slots, end = None, known + key.shape[-2]
        else:
            end = places.sees.shape[-1]
        keys, values = self._room(layer, key, end)
        if slots is None:
            keys[:, :, known:end], values[:, :, known:end] = key, value
        else:
            rows = torch.arange(len(slots), device=slots.device)[:, None]
            keys[rows, :, slots] = key.transpose(1, 2)
            values[rows, :, slots] = value.transpose(1, 2)
        self._lengths[layer] = end
        return keys[:, :, :end], values[:, :, :end]

    def known(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values (b, g, length, d) of a layer, zeros behind those it has."""
        found = self._layers[layer]
        assert found is not None, "nothing was computed yet"
        keys, values = found
        have = self._lengths[layer]
        more = (0, 0, 0, length - have)
        return pad(keys[:, :, :have], more), pad(values[:, :, :have], more)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Let keys and values (b, g, t, d) be all that a layer has."""
        self._layers[layer], self._lengths[layer] = (keys, values), keys.shape[-2]

    def rows(self, rows: Tensor) -> "Cache":
        """Return a cache of the texts in ``rows`` (n,), one of them several times perhaps."""
        made = Cache(len(self._layers))
        made._lengths = [*self._lengths]
        made._layers = [each and (each[0][rows], each[1][rows]) for each in self._layers]
        known = self._positions
        made._positions = known[rows] if known is not None and known.dim() == 2 else known
        return made

    def _room(self, layer: int, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, with room for ``length`` tokens at least."""
        known = self._layers[layer]
        if known is not None and known[0].shape[-2] >= length:
            return known
        room = length if known is None else length + length // 2
        shape = (*like.shape[:2], room, like.shape[-1])
        made = like.new_zeros(shape), like.new_zeros(shape)
        if known is not None:
            filled = self._lengths[layer]
            for new, old in zip(made, known, strict=True):
                new[:, :, :filled] = old[:, :, :filled]
        self._layers[layer] = made
        return made


def joined(caches: Sequence[Cache]) -> Cache:
    """Return a cache of the texts of all ``caches``, one behind the other.

    It is as long as the longest of them, and holds zeros where others are shorter.
    """
    if len(caches) == 1:
        return caches[0]
    length = max(cache.length for cache in caches)
    made = Cache(caches[0].layers)
    for layer in range(made.layers):
        parts = [cache.known(layer, length) for cache in caches]
        made.put(layer, *(torch.cat(each) for each in zip(*parts, strict=True)))
    places = [cache.positions(length) for cache in caches]
    told = [each for each in places if each is not None]
    made._positions = torch.cat(told) if told else None
    return made
