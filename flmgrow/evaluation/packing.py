"""Many texts with shared beginnings, laid out so that each beginning is computed once.

The choices of a question share its context, and the questions of a task often share the examples in
front of them: most of what would be computed is the same again. Texts are put into rows. A row is a
tree: behind the tokens that texts share, the ends in which they differ lie one after the other, at
the positions that they have in their texts, and each token sees its own text alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from flmgrow.model.places import Places

TokenIds = tuple[int, ...]


@dataclass
class PackedRow:
    """A tree of tokens: ``tokens`` at ``positions`` of their texts.

    ``parents`` is where the token before each lies, -1 for a first one; a parent lies before its
    children. ``texts`` says, by the number of a text, where each of its tokens lies.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    texts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, number: int, text: TokenIds, shared: Sequence[int]) -> None:
        """Add a text whose first tokens are there already, at ``shared``."""
        path = list(shared)
        for position in range(len(shared), len(text)):
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.tokens))
            self.tokens.append(text[position])
            self.positions.append(position)
        self.texts[number] = path

    def sees(self, size: int) -> Tensor:
        """Return which tokens each sees (size, size): its own text, up to itself.

        Those beyond the row's own see themselves.
        """
        found = np.eye(size, dtype=np.bool_)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                found[at, :at] = found[parent, :at]
        return torch.from_numpy(found)


def common(one: TokenIds, other: TokenIds) -> int:
    """Return how many tokens two texts have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def rows(texts: Sequence[TokenIds], tokens: int, most: int | None = None) -> Iterator[PackedRow]:
    """Yield rows that hold all ``texts``: of so many ``tokens``, or one longer text.

    Texts lie in one row if at least half of the later one is shared; ``most`` at once.
    """
    row, before = PackedRow(), -1
    for number in sorted(range(len(texts)), key=lambda each: texts[each]):
        text = texts[number]
        shared = common(texts[before], text) if row.texts else 0
        full = len(row.tokens) + len(text) - shared > tokens or len(row.texts) == most
        if row.texts and (full or 2 * shared < len(text)):
            yield row
            row, shared = PackedRow(), 0
        row.add(number, text, row.texts[before][:shared] if shared else ())
        before = number
    if row.texts:
        yield row


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows side by side: ``tokens`` (b, s), padded on the right, and their ``places``."""

    rows: Sequence[PackedRow]
    tokens: Tensor
    places: Places


def in_batches(
    made: Sequence[PackedRow], tokens: int, most: int | None = None
) -> Iterator[list[PackedRow]]:
    """Yield rows of like lengths that go together, the longest first: so many ``tokens``, padded,
    and ``most`` rows.
    """
    batch: list[PackedRow] = []
    for row in sorted(made, key=lambda each: -len(each.tokens)):
        if batch and (len(batch[0].tokens) * (len(batch) + 1) > tokens or len(batch) == most):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def batch_of(together: Sequence[PackedRow], device: torch.device) -> Batch:
    """Return rows as one batch."""
    size = max(len(row.tokens) for row in together)

    def padded(lists: Sequence[list[int]]) -> Tensor:
        return torch.tensor([[*each, *[0] * (size - len(each))] for each in lists], device=device)

    tokens = padded([row.tokens for row in together])
    positions = padded([row.positions for row in together])
    if all(is_plain(row) for row in together):  # what stands behind a text does not reach it
        return Batch(together, tokens, Places(torch.arange(size, device=device)))
    sees = torch.stack([row.sees(size) for row in together]).to(device)
    return Batch(together, tokens, Places(positions, sees))


def is_plain(row: PackedRow) -> bool:
    """Whether a row is no more than one text from its beginning."""
    return all(parent == at - 1 for at, parent in enumerate(row.parents))
