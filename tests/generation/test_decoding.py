"""Texts go on alike alone and in any batch, and end where they should."""

from dataclasses import replace

import pytest
import torch
from growing import tokens_for
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, logical_weights
from strategies import examples

from flmgrow.errors import UsageError
from flmgrow.generation import decoding
from flmgrow.generation.choosing import Choice
from flmgrow.generation.decoding import EndReason, GenerationRequest, continued
from flmgrow.model.module import Model

CONFIG = CONFIGS["llama"]
DRAWN = Choice(1.0, seed=3)


def model_of(name: str = "llama") -> Model:
    weights = logical_weights(CONFIGS[name])
    return Model(CONFIGS[name], {key: torch.from_numpy(value) for key, value in weights.items()})


MODEL = model_of()
IDS = st.integers(0, CONFIG.vocab - 1)
PROMPTS = st.builds(
    lambda begin, ends: [begin + end for end in ends],
    st.lists(IDS, max_size=3),
    st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=6),
)


def texts(
    model: Model, prompts: list[list[int]], request: GenerationRequest
) -> dict[int, list[int]]:
    return {each.number: each.tokens for each in continued(model, prompts, request)}


@examples(25)
@given(PROMPTS, st.integers(1, 6), st.sampled_from([Choice(), DRAWN]), st.sets(IDS, max_size=12))
def test_batches_change_nothing(
    prompts: list[list[int]], batch: int, choice: Choice, ends: set[int]
) -> None:
    request = GenerationRequest(choice, longest=5, batch=batch, ends=frozenset(ends))
    found = texts(MODEL, prompts, request)
    alone = texts(MODEL, prompts, replace(request, batch=1))
    assert found == alone
    assert found.keys() == set(range(len(prompts)))


@pytest.mark.parametrize("name", ["llama", "gpt", "flm"])
def test_greedy_is_the_argmax_of_the_whole_text(name: str) -> None:
    """Without a cache, each token from the beginning."""
    model, tokens = model_of(name), tokens_for(CONFIGS[name].vocab, 3, batch=1)
    found = texts(model, tokens.tolist(), GenerationRequest(longest=6))[0]
    whole = tokens
    for _ in range(6):
        whole = torch.cat((whole, model(whole)[:, -1:].argmax(-1)), -1)
    assert found == whole[0, 3:].tolist()


def test_texts_end_at_an_end_and_others_go_on() -> None:
    prompts = [[1, 2], [3, 4]]
    whole = texts(MODEL, prompts, GenerationRequest(DRAWN, longest=8))
    end = next(token for token in whole[0] if token not in whole[1])
    place = whole[0].index(end)
    first, second = continued(
        MODEL, prompts, GenerationRequest(DRAWN, longest=8, ends=frozenset([end]))
    )
    assert (first.tokens, first.ended) == (whole[0][:place], EndReason.END)
    assert (second.tokens, second.ended) == (whole[1], EndReason.LENGTH)


def test_texts_end_where_somebody_stops_them() -> None:
    heard: list[int] = []
    request = GenerationRequest(
        longest=8,
        stops=lambda _, tokens: len(tokens) == 3,
        told=lambda _, tokens: heard.append(tokens[-1]),
    )
    (found,) = continued(MODEL, [[1]], request)
    assert (len(found.tokens), found.ended) == (3, EndReason.STOP)
    assert heard == found.tokens


def test_the_context_ends_a_text() -> None:
    prompt = [1] * (CONFIG.max_positions - 2)
    (found,) = continued(MODEL, [prompt], GenerationRequest(longest=8))
    assert (len(found.tokens), found.ended) == (2, EndReason.CONTEXT)
    (found,) = continued(MODEL, [[1] * CONFIG.max_positions], GenerationRequest(longest=8))
    assert (found.tokens, found.ended) == ([], EndReason.CONTEXT)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "prompt 2 has no tokens"),
        ([1] * (CONFIG.max_positions + 1), f"the model reads {CONFIG.max_positions}"),
        ([CONFIG.vocab], f"makes token {CONFIG.vocab}, the model has {CONFIG.vocab}"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt: list[int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        list(continued(MODEL, [[1], prompt], GenerationRequest()))


@pytest.mark.parametrize(("worth", "sizes"), [(0, [3, 2, 1]), (2, [3, 3])])
def test_parts_change_nothing(
    monkeypatch: pytest.MonkeyPatch, worth: int, sizes: list[int]
) -> None:
    """However prompts are cut into parts, and whatever is taken for shared."""
    monkeypatch.setattr(decoding, "_WORTH", worth)
    prompts = [[1, 2, *range(length)] for length in (9, 8, 5, 3, 1, 1)]
    request = GenerationRequest(DRAWN, longest=5, batch=6, ends=frozenset([3]))
    assert texts(MODEL, prompts, request) == texts(MODEL, prompts, replace(request, batch=1))
    assert [len(part) for part in decoding._parts(prompts, 0)] == sizes


def test_what_prompts_begin_with_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_WORTH", 6)
    model, sizes = model_of(), []
    residual = model.residual

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(tuple(tokens.shape))
        return residual(tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "residual", counted)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 4, 8]]
    found = texts(model, prompts, GenerationRequest(longest=3, batch=3))
    assert sizes == [(1, 3), (3, 2), (3, 1), (3, 1)]
    assert found == texts(MODEL, prompts, GenerationRequest(longest=3, batch=1))


def test_texts_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = model_of(), []
    residual = model.residual

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(tokens))
        return residual(tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "residual", counted)
    request = GenerationRequest(longest=9, stops=lambda number, tokens: len(tokens) > 2 * number)
    found = texts(model, [[number] for number in range(4)], request)
    assert [len(found[number]) for number in range(4)] == [1, 3, 5, 7]
    assert sizes == [4, 3, 3, 2, 2, 1, 1]


def test_what_does_not_fit_the_memory_is_cut_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    residual = model.residual

    def small(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(tokens) > most:
            raise torch.OutOfMemoryError
        return residual(tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "residual", small)
    most, prompts = 2, [[number, 1] for number in range(5)]
    assert texts(model, prompts, GenerationRequest(longest=3)) == texts(
        MODEL, prompts, GenerationRequest(longest=3)
    )
    most = 0
    with pytest.raises(UsageError, match="memory does not suffice for one text"):
        texts(model, prompts, GenerationRequest(longest=3))
