"""Whatever is asked together, each question is answered as it would be alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, DictWeights, logical_weights
from strategies import any_config, examples

from flmgrow.errors import UsageError
from flmgrow.evaluation import scoring
from flmgrow.evaluation.packing import PackedRow, batch_of, common, in_batches, rows
from flmgrow.evaluation.scoring import ContinuationScore, Question, scores
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.model.module import Model

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1)


def model_of(config: ModelConfig) -> Model:
    weights = {k: torch.from_numpy(v) for k, v in logical_weights(config).items()}
    return Model(config, weights).eval()


def alone(config: ModelConfig, question: Question) -> ContinuationScore:
    """By the reference forward, from the question's own text."""
    weights = {k: torch.from_numpy(v) for k, v in logical_weights(config).items()}
    text = (question.context + question.continuation)[-(config.max_positions + 1) :]
    found = logits(config, DictWeights(weights), torch.tensor([text[:-1]])).log_softmax(-1)[0]
    ids = torch.tensor(question.continuation)
    own = found[-len(ids) :]
    return ContinuationScore(
        float(own[range(len(ids)), ids].sum()), bool((own.argmax(-1) == ids).all())
    )


@examples(25)
@given(any_config(), st.data())
def test_questions_are_answered_as_alone(config: ModelConfig, data: st.DataObject) -> None:
    ids = st.integers(0, min(2, config.vocab - 1))
    some = st.lists(ids, min_size=1, max_size=min(5, config.max_positions)).map(tuple)
    asked = data.draw(st.lists(st.builds(Question, some, some), min_size=1, max_size=8))
    most = data.draw(st.sampled_from([None, 1, 3]))
    heard: dict[int, ContinuationScore] = {}
    found = scores(model_of(config), asked, most, heard.__setitem__)
    assert [heard[number] for number in range(len(asked))] == found
    for question, score in zip(asked, found, strict=True):
        wanted = alone(config, question)
        assert score.log_likelihood == pytest.approx(wanted.log_likelihood, abs=1e-9, rel=1e-9)
        assert score.greedy == wanted.greedy


@given(TEXTS, st.integers(1, 12), st.sampled_from([None, 1, 2]))
def test_rows_hold_every_text_once(
    texts: list[tuple[int, ...]], tokens: int, most: int | None
) -> None:
    made = list(rows(texts, tokens, most))
    assert sorted(number for row in made for number in row.texts) == list(range(len(texts)))
    for row in made:
        assert len(row.texts) == 1 or len(row.tokens) <= tokens
        assert most is None or len(row.texts) <= most
        for number, path in row.texts.items():
            assert tuple(row.tokens[at] for at in path) == texts[number]
            assert [row.positions[at] for at in path] == list(range(len(path)))
            sees = row.sees(len(row.tokens) + 1)[path[-1]]
            assert sees.nonzero()[:, 0].tolist() == path
    together = [row for batch in in_batches(made, tokens, most) for row in batch]
    assert {id(row) for row in together} == {id(row) for row in made}


def test_what_is_shared_is_there_once() -> None:
    begin = tuple(range(20))
    (row,) = rows([(*begin, 30, 31), (*begin, 40), begin, (*begin, 30)], 99)
    assert len(row.tokens) == 23
    (one, other) = rows([(1, 2, 3, 4), (1, 5, 6, 7)], 99)
    assert (len(one.tokens), len(other.tokens)) == (4, 4)
    assert common((1, 2, 3), (1, 2)) == 2


def test_plain_rows_need_no_mask() -> None:
    made = list(rows([(1, 2, 3), (4, 5)], 99))
    batch = batch_of(made, torch.device("cpu"))
    assert batch.places.sees is None
    assert batch.tokens.tolist() == [[1, 2, 3], [4, 5, 0]]


def test_what_does_not_fit_the_memory_is_cut_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"])
    asked = [Question((number, 1), (2,)) for number in range(5)]
    wanted = scores(model, asked)
    residual, sizes = model.residual, []

    def small(tokens: torch.Tensor, **places: object) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError
        return residual(tokens, **places)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "residual", small)
    found = scores(model, asked)
    assert sizes == [5, 2, 3, 1, 2]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-10)
    monkeypatch.setattr(scoring, "batch_of", lambda *_: _none())
    with pytest.raises(UsageError, match="no memory for 2 tokens"):
        scores(model, asked)


def _none() -> None:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question((), (1,)), "no tokens"),
        (Question((1,), ()), "no tokens"),
        (Question((1,), (1,) * 40), "continuation has 40 tokens"),
        (Question((99,), (1,)), "makes token 99"),
    ],
)
def test_what_cannot_be_read_is_refused(question: Question, says: str) -> None:
    config = replace(CONFIGS["llama"], max_positions=32, vocab=24)
    with pytest.raises(UsageError, match=says):
        scores(model_of(config), [question])


def test_a_row_of_one_text_is_plain() -> None:
    row = PackedRow()
    row.add(0, (5, 6), ())
    assert (row.tokens, row.positions, row.parents) == ([5, 6], [0, 1], [-1, 0])
