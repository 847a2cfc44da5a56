"""Several sequences of samples blended into one, in exact proportions.

Of the first n samples of a blend, source one has floor(n * w), computed in fractions; of the rest,
source two has its share of the remaining weights in the same way; and so on. Sample n comes from
the source whose count rises there. Hence any k samples in a row hold floor(k * w) or ceil(k * w) of
source one, every source is taken from its start without a gap, and nothing has to be stored.

megatron-core's own blends do not have that property: the length of a run is an input of their
shuffle, so a stage that is made longer starts another order.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

from flmgrow.errors import UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.data.samples import Sample, Samples


def weights_of(texts: Sequence[str]) -> tuple[Fraction, ...]:
    """Return the weights that ``texts`` such as "53.5" say, exactly, scaled to a sum of 1.

    Raises:
        UsageError: Unless all are numbers above 0.
    """
    try:
        weights = [Fraction(text) for text in texts]
    except (ValueError, ZeroDivisionError):
        weights = []
    if not weights or min(weights) <= 0:
        raise UsageError(f"weights {' '.join(texts)}: wanted numbers above 0", "such as 53.5 46.5")
    return tuple(weight / sum(weights) for weight in weights)


def blended(index: int, weights: Sequence[Fraction]) -> tuple[int, int]:
    """Return the source of a blend's sample ``index``, and its own index in that source."""
    rest = Fraction(1)
    for source, weight in enumerate(weights[:-1]):
        share = weight / rest
        before, after = floor(index * share), floor((index + 1) * share)
        if after > before:
            return source, before
        index -= before
        rest -= weight
    return len(weights) - 1, index


def counted(samples: int, weights: Sequence[Fraction]) -> list[int]:
    """Return how many of a blend's first ``samples`` come from each source."""
    rest, counts = Fraction(1), []
    for weight in weights[:-1]:
        counts.append(floor(samples * (weight / rest)))
        samples -= counts[-1]
        rest -= weight
    return [*counts, samples]


class Blend:
    """Several sequences as one, in proportion to ``weights``, which sum to 1."""

    def __init__(self, sources: Sequence[Samples], weights: Sequence[Fraction]) -> None:
        if len(sources) != len(weights):
            raise UsageError(
                Text(f"{len(sources)} corpora and ", Found(f"{len(weights)} weights")),
                wanted="as many",
            )
        self._sources = list(sources)
        self._weights = list(weights)

    @property
    def identity(self) -> Json:
        """The sources' own, and their weights."""
        return self._of([source.identity for source in self._sources])

    @property
    def earlier(self) -> Json:
        """The identity that earlier versions gave the blend."""
        return self._of([source.earlier for source in self._sources])

    def _of(self, sources: list[Json]) -> Json:
        return {"blend": sources, "weights": [str(weight) for weight in self._weights]}

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` of the blend."""
        source, place = blended(index, self._weights)
        return self._sources[source][place]
