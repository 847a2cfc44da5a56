"""Which samples a run reads next, when its stages read other corpora, weights or lengths.

A stage may bring data of its own: a cleaner mix at the end, longer texts. No sample is to be read
twice for it, or passed over, unless somebody asks. So each corpus has a place of its own, which a
checkpoint remembers (:mod:`flmgrow.formats.history.readings`), and a stage takes up each of its
corpora where the run has left it, however long ago and whatever it was blended with.

That place counts samples in one order. With another seed, length or share held out the same texts
come in another order, and which of them were read cannot be said in it: such a corpus begins anew,
and the stage file has to say so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from flmgrow.errors import UsageError
from flmgrow.formats.history.readings import CorpusReading, PassedOver, Stretch
from flmgrow.formats.history.training_state import Carried
from flmgrow.trainer.data.mixture import Mixture, SampleSource
from flmgrow.trainer.data.samples import Keys, Samples, changes, digest, digest_of, digests_of

ORDER = ("sequence_length", "seed", "documents", "packed")
"""What of a source's identity decides on the order of its samples, and not on its texts."""

SIGHT = ("document_attention",)
"""What of it decides on neither, but on how much of a sample its tokens see."""

ORDER_KEYS = ("data.sequence_length", "data.seed", "data.validation_share", "data.teacher.packed")
"""The keys of a stage file that decide on it."""


@dataclass(frozen=True, eq=False)
class Course:
    """The samples of a stage by the run's own count, of which ``consumed`` are read.

    The stretch began when the run had consumed ``begin``; ``origin`` is the sample of the run that
    is the mixture's first, with each source at its ``start``. ``before`` are earlier stretches, and
    ``passed_over`` what of the samples consumed the run did not train on.
    """

    mixture: Mixture
    sequence_length: int
    starts: Sequence[int]
    origin: int = 0
    begin: int = 0
    consumed: int = 0
    before: Sequence[Stretch] = ()
    passed_over: Sequence[PassedOver] = ()

    def going_on_at(self, place: int) -> "Course":
        """Return it as it goes on with sample ``place``, past those that come before."""
        if place == self.consumed:
            return self
        passed = PassedOver(begin=self.consumed, end=place)
        return replace(self, consumed=place, passed_over=[*self.passed_over, passed])

    @property
    def samples(self) -> Samples:
        """All samples of the run, as far as this mixture is read; sample n is the run's n-th."""
        return self.mixture.samples(self.starts, self.origin)

    def places(self, consumed: int) -> list[int]:
        """Return how many samples of each source are read when the run has consumed so many."""
        counts = self.mixture.counts(consumed - self.origin)
        return [start + count for start, count in zip(self.starts, counts, strict=True)]

    def readings(self, consumed: int) -> list[Stretch]:
        """Return all stretches of the run, this one up to ``consumed``."""
        spans = zip(self._sources, self.places(self.begin), self.places(consumed), strict=True)
        here = Stretch(
            data=self.digest,
            begin=self.begin,
            origin=self.origin,
            sequence_length=self.sequence_length,
            corpora=[CorpusReading(**facts, begin=begin, end=end) for facts, begin, end in spans],
        )
        return [*self.before, here]

    @cached_property
    def digest(self) -> str:
        """What a checkpoint knows the samples by."""
        return digest_of(self.samples)

    @cached_property
    def _sources(self) -> list[dict[str, str]]:
        """What a checkpoint knows each source by."""
        return [
            {
                "name": source.name,
                "texts": texts_of(source.samples)[0],
                "order": orders_of(source.samples)[0],
            }
            for source in self.mixture.sources
        ]

    def epochs(self, last: int) -> Iterator[tuple[bool, str]]:
        """Yield, for each source, what is read of it up to the run's sample ``last``, in a line.

        Before it, whether some of it is read more than once.
        """
        spans = zip(self.places(self.consumed), self.places(last), strict=True)
        for source, (begin, end) in zip(self.mixture.sources, spans, strict=True):
            span = f"{begin / source.per_epoch:.2f} to {end / source.per_epoch:.2f}"
            size = f"{source.per_epoch:,} samples an epoch"
            yield end > source.per_epoch, f"reads {source.name}: {size}, epochs {span}"


def course_of(
    mixture: Mixture,
    keys: Keys,
    sequence_length: int,
    carried: Carried,
    *,
    begins: bool = False,
    changes_here: bool = False,
    differs: bool = False,
    hint: str = "",
) -> Course:
    """Return how a stage reads ``mixture`` after what its checkpoint has ``carried``.

    Where a stage ``begins``, sources that it asks for anew are read from their first sample.
    With ``differs`` the run may have read other data, and each source goes on from its own place.
    With ``changes_here`` the run goes on at the same places in what takes the place of its data
    (``checkpoint.change_at``). ``keys`` are what decides on the mixture, by a stage file's keys.
    ``hint`` says what may be done about other data.

    Raises:
        UsageError: If the run has read other data and that is not asked for, naming what differs;
            and for texts that were read in another order, unless they shall begin anew.
    """
    plain = Course(mixture, sequence_length, [0] * len(mixture.sources))
    if not carried.data:
        return plain
    same = _going_on(plain, carried)
    known = carried.data in digests_of(same.samples)
    restarts = begins and any(source.anew for source in mixture.sources)
    if known and not restarts:
        return same
    consumed, past = carried.consumed_samples, carried.readings
    if changes_here and not restarts:
        return replace(same, begin=consumed, before=past)
    if changes_here:
        places = zip(mixture.sources, same.places(consumed), strict=True)
        starts = [0 if source.anew else place for source, place in places]
        return Course(mixture, sequence_length, starts, consumed, consumed, consumed, past)
    if not (known or differs):
        differing = changes(carried.data_keys, keys) if carried.data_keys else ""
        digests = f"its digest is {carried.data}, now {plain.digest}"
        raise UsageError(
            f"the checkpoint consumed {consumed} samples of other data: {differing or digests}",
            f"give the same data: samples are counted on through all stages{hint}",
        )
    starts = [_start(source, carried, keys) for source in mixture.sources]
    return Course(mixture, sequence_length, starts, consumed, consumed, consumed, past)


def is_read(mixture: Mixture, sequence_length: int, carried: Carried) -> bool:
    """Whether a run that has ``carried`` so much is reading ``mixture``, or has read nothing."""
    plain = Course(mixture, sequence_length, [0] * len(mixture.sources))
    return carried.data in ("", *digests_of(_going_on(plain, carried).samples))


def _going_on(plain: Course, carried: Carried) -> Course:
    """Return the course that the run was on, if it is this mixture that it has read."""
    consumed, past = carried.consumed_samples, carried.readings
    # What an earlier version saved tells nothing of before: it is known from here on.
    unknown = replace(plain, begin=consumed, consumed=consumed)
    if not past or len(past[-1].corpora) != len(plain.starts):
        return unknown
    last = past[-1]
    counts = plain.mixture.counts(last.begin - last.origin)
    starts = [c.begin - count for c, count in zip(last.corpora, counts, strict=True)]
    if min(starts) < 0:
        return unknown
    return replace(
        plain,
        starts=starts,
        origin=last.origin,
        begin=last.begin,
        consumed=consumed,
        before=past[:-1],
    )


def _start(source: SampleSource, carried: Carried, keys: Keys) -> int:
    """Return where a stage takes a source up.

    Raises:
        UsageError: Where that cannot be said, and the stage file does not ask for it anew.
    """
    if source.anew:
        return 0
    hint = f"say {source.key}.begin: anew, if its texts may be read again"
    if not carried.readings:
        raise UsageError(
            f"{source.key}: how much of {source.name} was read is not known",
            f"an earlier flmgrow saved what the stage begins with; {hint}",
        )
    orders, texts = orders_of(source.samples), texts_of(source.samples)
    read = [c for reading in carried.readings for c in reading.corpora]
    for corpus in reversed(read):
        if corpus.order in orders:
            return corpus.end
        if corpus.texts in texts:
            before = carried.data_keys or {}
            differing = changes(*({k: each.get(k) for k in ORDER_KEYS} for each in (before, keys)))
            raise UsageError(
                f"{source.key}: of {source.name} {corpus.end:,} samples were read in another order"
                + (f" ({differing})" if differing else ""),
                f"which of its texts were read cannot be said in this one; {hint}",
            )
    return 0


def orders_of(samples: Samples) -> tuple[str, str]:
    """Return a digest of the texts of ``samples`` in their order, and an earlier one."""
    return _digests_without(SIGHT, samples)


def texts_of(samples: Samples) -> tuple[str, str]:
    """Return a digest of the texts of ``samples``, whatever their order, and an earlier one."""
    return _digests_without((*ORDER, *SIGHT), samples)


def _digests_without(left_out: Sequence[str], samples: Samples) -> tuple[str, str]:
    """Return the digests of what identifies ``samples``, without some of it."""
    now, earlier = (
        digest({key: value for key, value in each.items() if key not in left_out})
        for each in (samples.identity, samples.earlier)
    )
    return now, earlier
