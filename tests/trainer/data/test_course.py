"""Whatever its stages read, a run reads each corpus on from where it left it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.formats.history.training_state import Carried
from flmgrow.trainer.data.course import Course, course_of, is_read
from flmgrow.trainer.data.mixture import Mixture, SampleSource
from flmgrow.trainer.data.samples import Keys, Sample, digest_of

LENGTH = 3


class Texts:
    """A corpus whose samples say which it is, and their number in its order."""

    def __init__(self, name: str, seed: int = 0, *, apart: bool = False) -> None:
        order = {"seed": seed, **({"document_attention": True} if apart else {})}
        self.identity = {"tokens": name, **order}
        self.earlier = {"tokens": f"{name}, as it was called before", **order}
        self._name = name

    def __getitem__(self, index: int) -> Sample:
        tokens = np.array([ord(self._name), index, 0])
        return Sample(tokens, tokens, np.ones(LENGTH, np.float32), np.arange(LENGTH))


def mixture(
    weights: Mapping[str, int],
    seed: int = 0,
    share: Fraction | None = None,
    anew: str = "",
    *,
    apart: bool = False,
) -> Mixture:
    """Corpora by their names, and with a ``share`` a teacher called T; documents ``apart``."""
    names = (["T"] if share is not None else []) + list(weights)
    texts = {n: Texts(n, seed, apart=apart) for n in names}
    sources = [SampleSource(f"data.{n}", n, texts[n], 10, anew=n in anew) for n in names]
    total = sum(weights.values())
    return Mixture(sources, [Fraction(weight, total) for weight in weights.values()], share)


def keys(seed: int = 0) -> Keys:
    return {"data.seed": seed}


def on(mixed: Mixture, carried: Carried, seed: int = 0, **how: Any) -> Course:
    return course_of(mixed, keys(seed), LENGTH, carried, **how)


def after(course: Course, samples: int, seed: int = 0) -> Carried:
    """What a checkpoint carries after so many more samples, written and read again."""
    consumed = course.consumed + samples
    carried = Carried(
        consumed_samples=consumed,
        data=course.digest,
        data_keys=dict(keys(seed)),
        readings=course.readings(consumed),
    )
    return Carried.parse(carried.to_json(), "carried")


def read(course: Course, samples: int) -> list[tuple[str, int]]:
    """Which samples of which corpora the next ones of a course are."""
    rows = [course.samples[course.consumed + n].tokens for n in range(samples)]
    return [(chr(row[0]), int(row[1])) for row in rows]


STAGES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1),
        st.sampled_from([None, Fraction(1, 4), Fraction(2, 7)]),
        st.lists(st.integers(1, 25), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(stages=STAGES)
def test_no_sample_of_any_corpus_is_repeated_or_skipped(
    stages: Sequence[tuple[dict[str, int], Fraction | None, list[int]]],
) -> None:
    """Stages blend other corpora in other proportions, and are stopped and go on."""
    carried = Carried()
    found: dict[str, list[int]] = {}
    for weights, share, parts in stages:
        for number, samples in enumerate(parts):
            mixed = mixture(weights, share=share)
            course = on(mixed, carried, differs=number == 0)
            assert course.consumed == carried.consumed_samples
            for name, place in read(course, samples):
                found.setdefault(name, []).append(place)
            carried = after(course, samples)
            assert is_read(mixed, LENGTH, carried)
    for places in found.values():
        assert places == list(range(len(places)))
    ends: Counter[str] = Counter()
    for reading in carried.readings:
        ends |= Counter({corpus.name: corpus.end for corpus in reading.corpora})
    assert ends == Counter({name: len(places) for name, places in found.items()})
    begins = [reading.begin for reading in carried.readings]
    assert begins == sorted(set(begins))
    assert begins[0] == 0


def test_one_number_of_samples_would_not_do() -> None:
    """The negative control: a later mixture counted from the run's first sample skips texts."""
    first, second = mixture({"a": 1, "b": 1}), mixture({"b": 1, "c": 3})
    carried = after(on(first, Carried()), 40)
    whole = second.samples()
    counted = [chr(whole[n].tokens[0]) + str(whole[n].tokens[1]) for n in range(40, 44)]
    right = [f"{name}{place}" for name, place in read(on(second, carried, differs=True), 4)]
    assert sorted(right) == ["b20", "c0", "c1", "c2"]
    assert sorted(counted) == ["b10", "c30", "c31", "c32"]


def test_a_stage_with_the_data_before_goes_on_in_one_stretch() -> None:
    mixed = mixture({"a": 2, "b": 1})
    course = on(mixed, after(on(mixed, Carried()), 9), differs=True)
    assert sorted(read(course, 3)) == [("a", 6), ("a", 7), ("b", 3)]
    assert len(after(course, 9).readings) == 1


@pytest.mark.parametrize("other", [mixture({"a": 1, "b": 2}), mixture({"a": 1}), mixture({"c": 1})])
def test_other_data_is_refused_unless_asked_for(other: Mixture) -> None:
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 7)
    with pytest.raises(UsageError, match="consumed 7 samples of other data") as refusal:
        on(other, carried, hint="; or ask")
    assert refusal.value.hint is not None
    assert "counted on through all stages; or ask" in str(refusal.value.hint)
    assert not is_read(other, LENGTH, carried)
    assert on(other, carried, differs=True).begin == 7


def test_what_differs_from_the_data_before_is_named() -> None:
    carried = after(on(mixture({"a": 1}), Carried()), 3)
    told: Keys = {"data.seed": 0, "data.validation_share": 0.1}
    with pytest.raises(UsageError) as refusal:
        course_of(mixture({"b": 1}), told, LENGTH, carried)
    assert refusal.value.message.endswith("other data: data.validation_share is not given, now 0.1")
    with pytest.raises(UsageError, match="its digest is x, now "):
        course_of(mixture({"b": 1}), told, LENGTH, Carried(consumed_samples=3, data="x"))


def test_texts_in_another_order_begin_anew_only_if_asked() -> None:
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 8)
    with pytest.raises(UsageError) as refusal:
        on(mixture({"c": 1, "b": 1}, seed=5), carried, 5, differs=True)
    assert refusal.value.message == (
        "data.b: of b 4 samples were read in another order (data.seed is 0, now 5)"
    )
    assert "say data.b.begin: anew" in str(refusal.value.hint)
    course = on(mixture({"c": 1, "b": 1}, seed=5, anew="b"), carried, 5, differs=True)
    assert sorted(read(course, 4)) == [("b", 0), ("b", 1), ("c", 0), ("c", 1)]
    resumed = on(mixture({"c": 1, "b": 1}, seed=5, anew="b"), after(course, 4, 5), 5)
    assert sorted(read(resumed, 2)) == [("b", 2), ("c", 2)]


@pytest.mark.parametrize("how", [{}, {"differs": True}, {"changes_here": True}])
def test_the_same_data_begins_anew_where_a_stage_does(how: dict[str, Any]) -> None:
    """What is asked for anew from its first sample, the rest from its place, and once."""
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 8)
    mixed = mixture({"a": 1, "b": 1}, anew="b")
    assert sorted(read(on(mixed, carried, **how), 2)) == [("a", 4), ("b", 4)]
    course = on(mixed, carried, begins=True, **how)
    assert sorted(read(course, 4)) == [("a", 4), ("a", 5), ("b", 0), ("b", 1)]
    later = after(course, 4)
    assert [(reading.begin, reading.origin) for reading in later.readings] == [(0, 0), (8, 8)]
    assert sorted(read(on(mixed, later), 2)) == [("a", 6), ("b", 2)]
    assert sorted(read(on(mixture({"a": 1, "b": 1}), later, begins=True), 2)) == [
        ("a", 6), ("b", 2),
    ]  # fmt: skip


def test_other_data_is_refused_though_some_begins_anew() -> None:
    carried = after(on(mixture({"a": 1}), Carried()), 4)
    with pytest.raises(UsageError, match="consumed 4 samples of other data"):
        on(mixture({"a": 1, "b": 1}, anew="ab"), carried, begins=True)


@pytest.mark.parametrize("before", [False, True])
def test_attention_that_stops_at_documents_leaves_places_as_they_are(before: bool) -> None:
    """They are the same samples in the same order, but it has to be asked for."""
    carried = after(on(mixture({"a": 1, "b": 1}, apart=before), Carried()), 8)
    later = mixture({"b": 1, "c": 1}, apart=not before)
    assert sorted(read(on(later, carried, differs=True), 2)) == [("b", 4), ("c", 0)]
    same = mixture({"a": 1, "b": 1}, apart=not before)
    with pytest.raises(UsageError, match="consumed 8 samples of other data"):
        on(same, carried)
    changed = on(same, carried, changes_here=True)
    assert sorted(read(changed, 2)) == [("a", 4), ("b", 4)]


def test_a_corpus_that_was_left_goes_on_where_it_was() -> None:
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 10)
    carried = after(on(mixture({"c": 1}), carried, differs=True), 4)
    assert read(on(mixture({"b": 1}), carried, differs=True), 2) == [("b", 5), ("b", 6)]
    assert [reading.begin for reading in carried.readings] == [0, 10]


def test_what_an_earlier_version_saved_goes_on_and_tells_nothing_of_before() -> None:
    """The same data goes on; what was read of each corpus cannot be said for other data."""
    mixed = mixture({"a": 1, "b": 1})
    old: Any = type("Old", (), {"identity": mixed.samples().earlier})
    carried = Carried(consumed_samples=6, data=digest_of(old))
    course = on(mixed, carried)
    assert (course.consumed, course.begin, course.places(6)) == (6, 6, [3, 3])
    assert course.digest != carried.data
    other = mixture({"c": 1, "b": 1})
    with pytest.raises(UsageError, match="how much of c was read is not known"):
        on(other, carried, differs=True)
    assert on(mixture({"c": 1}, anew="c"), carried, differs=True).places(6) == [0]


def test_a_change_within_a_stage_keeps_the_places() -> None:
    """As ``checkpoint.change_at`` has it: another order from here on, at the same numbers."""
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 6)
    course = on(mixture({"a": 1, "b": 1}, seed=9), carried, 9, changes_here=True)
    assert sorted(read(course, 2)) == [("a", 3), ("b", 3)]
    later = after(course, 2, 9)
    assert [(r.begin, r.origin) for r in later.readings] == [(0, 0), (6, 0)]
    resumed = on(mixture({"a": 1, "b": 1}, seed=9), later, 9)
    assert sorted(read(resumed, 2)) == [("a", 4), ("b", 4)]
    assert len(after(resumed, 2, 9).readings) == 2


def test_what_shall_begin_anew_moves_no_other() -> None:
    """Where a stage's first settings are changed, what takes the place of its data, too."""
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 8)
    later = mixture({"a": 1, "c": 1}, seed=9, anew="a")
    course = on(later, carried, 9, changes_here=True, begins=True)
    assert sorted(read(course, 2)) == [("a", 0), ("c", 4)]
    resumed = on(later, after(course, 2, 9), 9)
    assert sorted(read(resumed, 2)) == [("a", 1), ("c", 5)]


def test_epochs_are_told_from_where_each_corpus_goes_on() -> None:
    carried = after(on(mixture({"a": 1, "b": 1}), Carried()), 10)
    course = on(mixture({"b": 1, "c": 1}), carried, differs=True)
    assert list(course.epochs(22)) == [
        (True, "reads b: 10 samples an epoch, epochs 0.50 to 1.10"),
        (False, "reads c: 10 samples an epoch, epochs 0.00 to 0.60"),
    ]
