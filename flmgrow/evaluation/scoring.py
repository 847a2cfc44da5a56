"""How likely a model finds the continuations of contexts.

The harness asks for very many short continuations behind long contexts. What contexts share is
computed once (:mod:`flmgrow.evaluation.packing`). Logits are wanted at the continuations' positions
alone, and the head is the largest matrix of a small model, so it is computed there alone, once for
all choices of one token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.evaluation.packing import Batch, PackedRow, batch_of, in_batches, rows
from flmgrow.model.config import ModelConfig
from flmgrow.model.module import Model
from flmgrow.text import Setting, Text

TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens that are computed at once on a device, padding included."""
ROW = 2048
"""Tokens of texts with one beginning, at most: each looks at all of them."""
_LOGITS = 1 << 26
"""Logits that are held at once, at most."""


@dataclass(frozen=True)
class Question:
    """How likely is ``continuation`` behind ``context``? Both are ids; neither may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class ContinuationScore:
    """The sum of the continuation's log-probabilities; ``greedy``: each id was the likeliest."""

    log_likelihood: float
    greedy: bool


Told = Callable[[int, ContinuationScore], object]
"""Hears of each answer as it comes: the question's number, and its score."""


def read_tokens(question: Question, config: ModelConfig) -> tuple[int, ...]:
    """Return what a model reads to answer: all but the last id, the end of it if it is too long.

    Raises:
        UsageError: If the continuation alone is longer than the model reads, and for an id that the
            model does not have.
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
    read = whole[-(config.max_positions + 1) :][:-1]
    long = config.rotary.longrope
    if long is not None and len(read) > long.context:
        raise UsageError(
            f"a text has {len(read)} tokens: LongRoPE turns those of more than {long.context} in "
            "another way, and texts of a batch must not change one another",
            Text("let transformers score it: ", Setting("backend", "hf")),
        )
    return read


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
    model: Model,
    questions: Sequence[Question],
    most: int | None = None,
    told: Told = lambda _, __: None,
) -> list[ContinuationScore]:
    """Return the score of each question.

    ``most`` texts are computed at once; as many as seems good if None.

    Raises:
        UsageError: As ``read_tokens`` does, before anything is computed, and where memory does not
            suffice for one.
    """
    read = [read_tokens(each, model.config) for each in questions]
    wanted = [each.continuation for each in questions]
    device = next(model.parameters()).device
    tokens = TOKENS.get(device.type, TOKENS["cpu"])
    found: dict[int, ContinuationScore] = {}
    for together in in_batches(list(rows(read, ROW, most)), tokens, most):
        for number, score in _scored(model, together, wanted, device):
            found[number] = score
            told(number, score)
    return [found[number] for number in range(len(questions))]


def _scored(
    model: Model,
    together: Sequence[PackedRow],
    wanted: Sequence[Sequence[int]],
    device: torch.device,
) -> Iterator[tuple[int, ContinuationScore]]:
    """Yield the scores of the ids that are ``wanted`` at the end of each text of these rows."""
    try:
        yield from list(_at_once(model, batch_of(together, device), wanted))
        return
    except torch.OutOfMemoryError:
        if len(together) == 1:
            raise UsageError(
                f"{device} has no memory for {len(together[0].tokens)} tokens",
                "compute in a smaller dtype, or elsewhere",
            ) from None
    half = len(together) // 2
    for part in (together[:half], together[half:]):
        yield from _scored(model, part, wanted, device)


def _at_once(
    model: Model, batch: Batch, wanted: Sequence[Sequence[int]]
) -> Iterator[tuple[int, ContinuationScore]]:
    last = model.residual(batch.tokens, places=batch.places)
    asked: dict[tuple[int, int], int] = {}
    """Where a score is asked for: row and place, and which of all these it is."""
    pairs: list[tuple[int, int]] = []
    lengths: dict[int, int] = {}
    for at, row in enumerate(batch.rows):
        for number, path in row.texts.items():
            ids = wanted[number]
            lengths[number] = len(ids)
            for place, token in zip(path[-len(ids) :], ids, strict=True):
                pairs.append((asked.setdefault((at, place), len(asked)), token))
    where = torch.tensor([*asked], device=last.device)
    found = iter(_likelihoods(model, last[where[:, 0], where[:, 1]], pairs))
    for number, count in lengths.items():
        own = [next(found) for _ in range(count)]
        yield number, ContinuationScore(sum(one for one, _ in own), all(best for _, best in own))


def _likelihoods(
    model: Model, x: Tensor, pairs: Sequence[tuple[int, int]]
) -> list[tuple[float, bool]]:
    """Return, for pairs of a row of ``x`` (n, h), last residuals, and an id: its log-probability
    there, and whether it is the likeliest.
    """
    size = max(1, _LOGITS // model.config.vocab)
    order = sorted(range(len(pairs)), key=lambda each: pairs[each][0])
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(x), size):
        logits = model.logits_of(x[None, start : start + size])[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = [each for each in order if start <= pairs[each][0] < start + size]
        at = torch.tensor([pairs[each][0] - start for each in own], device=x.device)
        ids = torch.tensor([pairs[each][1] for each in own], device=x.device)
        values = (logits[at, ids] - logits.logsumexp(-1)[at]).tolist()
        best = (logits.argmax(-1)[at] == ids).tolist()
        found |= zip(own, zip(values, best, strict=True), strict=True)
    return [found[each] for each in range(len(pairs))]
