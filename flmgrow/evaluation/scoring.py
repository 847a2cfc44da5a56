"""How likely a model finds the continuations of contexts.

The harness asks for very many short continuations behind long contexts. Logits are wanted at the
continuations' positions alone, and the head is the largest matrix of a small model, so it is
computed there alone. Texts are padded on the right, which causal attention does not see.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.module import Model

TOKENS = 4096
"""Tokens that are computed at once, padding included, unless somebody says otherwise."""
_LOGITS = 1 << 26
"""Logits that are held at once, at most."""


@dataclass(frozen=True)
class Question:
    """How likely is ``continuation`` behind ``context``? Both are ids; neither may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The sum of the continuation's log-probabilities; ``greedy``: each id was the likeliest."""

    log_likelihood: float
    greedy: bool


Told = Callable[[int, Score], object]
"""Hears of each answer as it comes: the question's number, and its score."""


def read_tokens(question: Question, config: ModelConfig) -> tuple[int, ...]:
    """Return what a model reads to answer: all but the last id, the end of it if it is too long.

    Raises UsageError if the continuation alone is longer than the model reads, and for an id that
    the model does not have.
    """
    whole = question.context + question.continuation
    if not question.context or not question.continuation:
        raise UsageError("a context or a continuation has no tokens", "give it a text")
    if len(question.continuation) > config.max_positions:
        raise UsageError(
            f"a continuation has {len(question.continuation)} tokens, the model reads "
            f"{config.max_positions}",
            "give it a shorter text",
        )
    check_ids(whole, config)
    return whole[-(config.max_positions + 1) :][:-1]


def check_ids(ids: Sequence[int], config: ModelConfig) -> None:
    """Raise UsageError for an id that the model does not have."""
    strange = next((one for one in ids if not 0 <= one < config.vocab), None)
    if strange is not None:
        raise UsageError(
            f"the tokenizer makes token {strange}, the model has {config.vocab}",
            "give the tokenizer that the model was trained with",
        )


@torch.no_grad()
def scores(
    model: Model, questions: Sequence[Question], most: int = TOKENS, told: Told = lambda _, __: None
) -> list[Score]:
    """Return the score of each question, computing ``most`` tokens at once, or one text.

    Raises UsageError as ``read_tokens`` does, before anything is computed.
    """
    read = [read_tokens(each, model.config) for each in questions]
    found: dict[int, Score] = {}
    for numbers in in_batches([len(each) for each in read], most):
        batch = [read[number] for number in numbers]
        wanted = [questions[number].continuation for number in numbers]
        for number, score in zip(numbers, _scored(model, batch, wanted), strict=True):
            found[number] = score
            told(number, score)
    return [found[number] for number in range(len(questions))]


def in_batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the numbers of texts that go together, the longest first: padded, ``most`` tokens."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _scored(
    model: Model, batch: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> Iterator[Score]:
    """Yield the scores of the ids that are ``wanted`` at the end of each text of a batch."""
    device = next(model.parameters()).device
    longest = max(map(len, batch))
    padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in batch]
    last = model.residual(torch.tensor(padded, device=device))
    asked = [
        last[row, len(tokens) - len(ids) : len(tokens)]
        for row, (tokens, ids) in enumerate(zip(batch, wanted, strict=True))
    ]
    ids = torch.tensor([one for each in wanted for one in each], device=device)
    likelihood, greedy = _at(model, torch.cat(asked), ids)
    start = 0
    for each in wanted:
        stop = start + len(each)
        yield Score(float(likelihood[start:stop].sum()), bool(greedy[start:stop].all()))
        start = stop


def _at(model: Model, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (n,) of ``ids`` (n,) in float64 given the last residuals ``x``
    (n, h), and whether each is the likeliest.
    """
    config = model.config
    rows = max(1, _LOGITS // config.vocab)
    likelihoods, greedy = [], []
    for start in range(0, len(ids), rows):
        own = ids[start : start + rows]
        logits = model.logits_of(x[None, start : start + rows])[0]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        losses = functional.cross_entropy(wide, own, reduction="none")
        likelihoods.append(-losses.double())
        greedy.append(logits.argmax(-1) == own)
    return torch.cat(likelihoods).cpu(), torch.cat(greedy).cpu()
