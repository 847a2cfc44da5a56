"""The corpora of a stage, and the teacher's propositions, as one sequence of samples.

Each keeps its name and its own numbering, so that how far each was read can be told of the whole,
and each can be taken up where it was left.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.blends import Blend, counted
from flmgrow.trainer.data.freelm import mixed
from flmgrow.trainer.data.samples import Numbered, Sample, Samples


@dataclass(frozen=True, eq=False)
class SampleSource:
    """A corpus, or the teacher, by the ``key`` that names it in a stage file, and its ``name``.

    There are ``per_epoch`` samples before they come again. ``anew`` says that the stage file asks
    for it from its first sample, whatever was read of it before.
    """

    key: str
    name: str
    samples: Samples
    per_epoch: int
    anew: bool = False


class Moved:
    """Samples counted from elsewhere: sample n is sample ``n + by`` of ``samples``."""

    def __init__(self, samples: Samples, by: int) -> None:
        self._samples = samples
        self._by = by

    @property
    def identity(self) -> Json:
        """The identity of what is counted, and from where."""
        return {"moved": self._samples.identity, "by": self._by}

    @property
    def earlier(self) -> Json:
        """The same, of what earlier versions said."""
        return {"moved": self._samples.earlier, "by": self._by}

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``."""
        return self._samples[index + self._by]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Sources in their proportions: ``weights``, which sum to 1, are those of the corpora.

    With a teacher's ``share`` the first source is the teacher, and the corpora have the rest.
    """

    sources: Sequence[SampleSource]
    weights: Sequence[Fraction]
    share: Fraction | None = None

    def samples(self, starts: Sequence[int] | None = None, origin: int = 0) -> Samples:
        """Return the sequence whose sample ``origin`` is the first, and begins in each source at
        its start. Each sample has the number of its source.
        """
        begins = [0] * len(self.sources) if starts is None else starts
        parts = [
            Numbered(_moved(source.samples, by), number)
            for number, (source, by) in enumerate(zip(self.sources, begins, strict=True))
        ]
        teacher, corpora = (parts[:1], parts[1:]) if self.share is not None else ([], parts)
        whole: Samples = corpora[0] if len(corpora) == 1 else Blend(corpora, self.weights)
        if self.share is not None:
            whole = mixed(whole, teacher[0], self.share)
        return _moved(whole, -origin)

    @property
    def names(self) -> tuple[str, ...]:
        """What people call each source, no two the same."""
        return distinct([source.name for source in self.sources])

    def counts(self, samples: int) -> list[int]:
        """Return how many of the first ``samples`` are of each source."""
        if self.share is None:
            return counted(samples, self.weights)
        teacher, rest = counted(samples, [self.share, 1 - self.share])
        return [teacher, *counted(rest, self.weights)]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` such that none comes twice: the second ``en`` is told as ``en (2)``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def _moved(samples: Samples, by: int) -> Samples:
    return Moved(samples, by) if by else samples
