"""A teacher's rows hold what was written, the loss counts on labels alone, and both signals mix."""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import cl100k_ranks, make_ranks

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer.data.batches import Batches, Batching
from flmgrow.trainer.data.freelm import (
    EMOJIS,
    Proposition,
    Teacher,
    labels_of,
    mixed,
    read_propositions,
)
from flmgrow.trainer.data.samples import attention_mask, is_packed
from flmgrow.trainer.data.tokenizers import ByteTokenizer, open_tokenizer

BYTES = ByteTokenizer()
TRUE, FALSE = (list(EMOJIS[label].encode()) for label in (True, False))


def proposition(text: str, label: bool = True) -> Proposition:
    return Proposition(text, label, "a.jsonl:1")


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def members(teacher: Teacher, index: int) -> list[tuple[str, bool]]:
    """The propositions in a row, read back from its tokens, masks and positions alone."""
    sample = teacher[index]
    size = len(sample.tokens) + int(sample.loss_mask[-1])  # the last label may be a target only
    text = np.append(sample.tokens, sample.labels[-1])[:size]
    counts = np.append(0, sample.loss_mask)[:size]
    starts = [*np.flatnonzero(sample.positions == 0), size]
    if len(starts) == 2:  # a single text, whose filler counts on: no text has its token
        starts[1] = int(np.flatnonzero(np.append(text, BYTES.eod) == BYTES.eod)[0])
        assert not counts[starts[1] :].any()
    found = []
    for begin, end in pairwise(starts):
        row = text[begin:end]
        counted = counts[begin:end] == 1
        if counted.any():
            label = bytes(row[counted].astype(np.uint8)).decode()
            assert label in EMOJIS.values()
            assert not counted[: -len(label.encode())].any()
            found.append((bytes(row[~counted].astype(np.uint8)).decode(), label == EMOJIS[True]))
        else:
            assert (row == BYTES.eod).all()
    return found


def test_a_row_by_hand() -> None:
    """Two propositions, packed into a row of 16 and the token after it, and one that is not."""
    teacher = Teacher([proposition("ab"), proposition("cde", False)], BYTES, 16, seed=1)
    assert teacher.rows == 1
    row = teacher[0]
    first, second = ([*b"ab", *TRUE], [*b"cde", *FALSE])
    masks = [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]
    order = [0, 1] if row.tokens[0] == ord("a") else [1, 0]
    text = [token for i in order for token in (first, second)[i]] + [256] * 4
    assert row.tokens.tolist() == text[:16]
    assert row.labels.tolist() == text[1:]
    assert row.loss_mask.tolist() == [*masks[order[0]][1:], *masks[order[1]], 0, 0, 0, 0]
    positions = [*range(len(masks[order[0]])), *range(len(masks[order[1]])), *range(4)]
    assert row.positions.tolist() == positions[:16]
    alone = Teacher([proposition("ab")], BYTES, 5, seed=1)[0]  # fills its row to the last token
    assert alone.tokens.tolist() == first[:5]
    assert alone.labels.tolist() == first[1:]
    assert alone.loss_mask.tolist() == [0, 1, 1, 1, 1]
    assert alone.positions.tolist() == list(range(5))
    short = Teacher([proposition("ab"), proposition("cd")], BYTES, 16, seed=1, packed=False)
    assert [is_packed(short[n].positions[None]) for n in range(2)] == [False, False]
    assert short[0].loss_mask.tolist() == [0, 1, 1, 1, 1, *[0] * 11]


TEXTS = st.lists(st.tuples(st.text(min_size=1, max_size=7), st.booleans()), min_size=1, max_size=30)


@given(texts=TEXTS, length=st.integers(31, 70), seed=st.integers(0, 2**40), packed=st.booleans())
def test_every_proposition_comes_once_an_epoch(
    texts: list[tuple[str, bool]], length: int, seed: int, packed: bool
) -> None:
    teacher = Teacher([proposition(*text) for text in texts], BYTES, length, seed, packed=packed)
    for epoch in range(2):
        begin = epoch * teacher.rows
        rows = [members(teacher, index) for index in range(begin, begin + teacher.rows)]
        assert Counter(member for row in rows for member in row) == Counter(texts)
        assert packed or {len(row) for row in rows} == {1}


@given(texts=TEXTS, seed=st.integers(0, 9))
def test_attention_does_not_cross_propositions(texts: list[tuple[str, bool]], seed: int) -> None:
    teacher = Teacher([proposition(*text) for text in texts], BYTES, 40, seed)
    sample = teacher[0]
    hidden = attention_mask(sample.positions[None])[0, 0]
    begin = 0
    for text, _ in members(teacher, 0):
        end = min(begin + len(text.encode()) + 4, 40)
        assert hidden[begin:end, :begin].all()
        assert hidden[end:, begin:end].all() or len(members(teacher, 0)) == 1
        assert not np.tril(hidden[begin:end, begin:end]).any()
        begin = end


def test_seeds_and_epochs_change_the_order() -> None:
    propositions = [proposition(f"{number:02}") for number in range(40)]
    rows = {seed: Teacher(propositions, BYTES, 12, seed) for seed in (1, 2)}
    again = Teacher(propositions, BYTES, 12, 1)
    orders = [
        [members(rows[s], e * rows[s].rows + i) for i in range(10)] for s in (1, 2) for e in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
    assert orders[0] == [members(again, i) for i in range(10)]
    assert rows[1].identity == again.identity != rows[2].identity
    flipped = [proposition("00", False), *propositions[1:]]
    assert Teacher(flipped, BYTES, 12, 1).identity != again.identity


class Language:
    """Rows of a language signal, which all begin with -1."""

    identity = {"language": 1}  # noqa: RUF012

    def __getitem__(self, index: int) -> object:
        from flmgrow.trainer.data.samples import Sample

        tokens = np.full(12, -1)
        return Sample(tokens, tokens, np.ones(12, np.float32), np.arange(12))


@given(share=st.fractions(Fraction(1, 20), Fraction(19, 20)), steps=st.integers(1, 5))
def test_every_batch_holds_both_signals(share: Fraction, steps: int) -> None:
    teacher = Teacher([proposition(str(number)) for number in range(9)], BYTES, 12, 3)
    samples = mixed(Language(), teacher, share)  # type: ignore[arg-type]
    batches = Batches(samples, Batching(20, 5, 1, 0))
    for _, step in zip(range(steps), batches, strict=False):
        tokens = np.concatenate([micro_batch["tokens"] for micro_batch in step])
        taught = int((tokens[:, 0] != -1).sum())
        assert 1 <= taught <= 19
        assert abs(taught - 20 * share) < 1


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1), Fraction(-1, 2)])
def test_a_share_that_is_none_is_refused(share: Fraction) -> None:
    teacher = Teacher([proposition("a")], BYTES, 12, 3)
    with pytest.raises(UsageError, match="share"):
        mixed(teacher, teacher, share)


def test_the_deciding_token_classifies() -> None:
    labels = labels_of(BYTES)
    assert labels.shared == (0xF0, 0x9F, 0x98)
    assert labels.deciding == {True: 0xA1, False: 0x88}
    logits = np.zeros((2, 257))
    logits[0, 0xA1], logits[1, 0x88] = 1, 1
    logits[:, 0xF0] = 9  # others do not count
    assert labels.classify(logits).tolist() == [True, False]
    assert labels.prompt(BYTES.encode("ab")).tolist() == [97, 98, 0xF0, 0x9F, 0x98]


def test_ranks_that_share_a_prefix(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    tokenizer = open_tokenizer(str(make_ranks(tmp_path / "tiny.tiktoken")))
    labels = labels_of(tokenizer)
    assert (len(labels.shared), len(labels.whole[True])) == (1, 2)
    assert labels.deciding == {True: 0xA1, False: 0x88}


def test_cl100k_has_the_labels_of_two_tokens() -> None:
    pytest.importorskip("tiktoken")
    tokenizer = open_tokenizer(str(cl100k_ranks()))
    labels = labels_of(tokenizer)
    assert labels.shared == (76460,)
    assert labels.deciding == {True: 94, False: 230}
    teacher = Teacher([proposition("Is it so?!"), proposition("天是蓝的。")], tokenizer, 31, 0)
    row = teacher[0]
    assert row.labels[row.loss_mask == 1].tolist() == [76460, 94] * 2


class Hard(ByteTokenizer):
    """Hears no Chinese, which it loses."""

    exact = False

    def encode(self, text: str) -> np.ndarray:
        return super().encode("".join(c for c in text if not "\u4e00" <= c <= "\u9fff"))


def test_what_a_tokenizer_loses_of_propositions_is_counted() -> None:
    propositions = [Proposition("ab", True, "a:1"), Proposition("天是蓝的。", True, "a:2")]
    lost = Teacher(propositions, Hard(), 31, 0).lost
    assert str(lost) == "4 characters do not come back from the tokenizer (first a:2, U+5929 天)"
    assert len(Teacher(propositions, BYTES, 31, 0).lost) == 0


class Deaf(ByteTokenizer):
    """Knows no emoji."""

    def encode(self, text: str) -> np.ndarray:
        return super().encode("".join(c if c.isascii() else "?" for c in text))


def test_a_tokenizer_that_does_not_tell_the_labels_apart_is_refused() -> None:
    with pytest.raises(UsageError, match="does not tell"):
        labels_of(Deaf())


def test_propositions_are_read_from_json_lines(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"text": "Water is wet.", "label": True})
    write(tmp_path / "b.jsonl", {"text": "Fire is wet.", "label": False, "more": 1})
    found = list(read_propositions([tmp_path]))
    assert [(each.text, each.label) for each in found] == [
        ("Water is wet.", True),
        ("Fire is wet.", False),
    ]
    assert found[0].place == f"{first}:1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "x"}, "wanted the key 'label'"),
        ({"label": True}, "wanted the key 'text'"),
        ({"text": "x", "label": 1}, "'label' is of type int, wanted true or false"),
        ({"text": "x", "label": "true"}, "'label' is of type str, wanted true or false"),
        ({"text": "", "label": True}, "a proposition without text"),
    ],
)
def test_what_is_no_proposition_is_refused(line: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "x", "label": True}, line)
    with pytest.raises(BadDataError, match=rf"a\.jsonl:2: .*{message}"):
        list(read_propositions([path]))


def test_plain_text_holds_no_propositions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"wanted \.jsonl"):
        list(read_propositions([tmp_path]))


def test_rows_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadDataError, match=r"a\.jsonl:1: 9 tokens and 4 of its label, wanted at"):
        Teacher([proposition("x" * 9)], BYTES, 11, 0)
    assert Teacher([proposition("x" * 8)], BYTES, 11, 0).rows == 1
    with pytest.raises(BadDataError, match="not a text"):
        Teacher([proposition("\ud800")], BYTES, 11, 0)
    with pytest.raises(BadDataError, match="no propositions"):
        Teacher([], BYTES, 11, 0)
