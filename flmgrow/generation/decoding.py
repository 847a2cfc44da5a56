"""Texts that go on, in batches: one pass over the prompts, then one token for each at a time.

The reference forward knows no padding, so texts share a batch if their prompts have one length. A
text that has ended stays in its batch, unheard, until all have.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.generation.choosing import LIKELIEST, Choice, choose
from flmgrow.model.checks import check_whole
from flmgrow.model.module import Model

Stops = Callable[[int, list[int]], bool]
"""Whether a text ends here, given its number and its new tokens."""


class Ended(StrEnum):
    """Why a text ends."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"


@dataclass(frozen=True)
class Request:
    """How texts go on: up to ``longest`` new tokens, or to one of the ids that are ``ends``.

    ``batch`` texts at a time. ``stops`` is asked after each token, ``told`` hears of it. ``draws``
    says which random numbers a text has, by its number.
    """

    choice: Choice = LIKELIEST
    longest: int = 128
    ends: frozenset[int] = frozenset()
    batch: int = 8
    stops: Stops = lambda _, __: False
    told: Callable[[int, list[int]], object] = lambda _, __: None
    draws: Callable[[int], int] = lambda number: number

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.longest)
        check_whole("batch_size", self.batch)


@dataclass(frozen=True)
class Continued:
    """What a prompt's ``number`` went on with: ``tokens``, without the id that ended it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    ended: Ended = Ended.LENGTH


def check_prompts(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    """Raise UsageError for a prompt that the model cannot read, by its number from 1 on."""
    config = model.config
    for number, tokens in enumerate(prompts, 1):
        if not tokens:
            raise UsageError(f"prompt {number} has no tokens", "give it a text")
        if len(tokens) > config.max_positions:
            raise UsageError(
                f"prompt {number} has {len(tokens)} tokens, the model reads {config.max_positions}",
                "give it a shorter text",
            )
        if strange := [token for token in tokens if not 0 <= token < config.vocab]:
            raise UsageError(
                f"prompt {number}: the tokenizer makes token {strange[0]}, the model has "
                f"{config.vocab}",
                "give the tokenizer that the model was trained with",
            )


def in_batches(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that go together, which have one length, ``most`` at a time."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, tokens in enumerate(prompts):
        by_length[len(tokens)].append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), most):
            yield numbers[start : start + most]


@torch.no_grad()
def continued(
    model: Model, prompts: Sequence[Sequence[int]], request: Request
) -> Iterator[Continued]:
    """Yield how each prompt goes on, batch by batch. Raises UsageError as ``check_prompts``."""
    check_prompts(model, prompts)
    device = next(model.parameters()).device
    for numbers in in_batches(prompts, request.batch):
        tokens = torch.tensor([list(prompts[number]) for number in numbers], device=device)
        yield from _batch(model, numbers, tokens, request)


def _batch(
    model: Model, numbers: Sequence[int], tokens: Tensor, request: Request
) -> Iterator[Continued]:
    """Yield how the texts of one batch go on, given their prompts (b, s)."""
    room = model.config.max_positions - tokens.shape[-1]
    last = Ended.LENGTH if request.longest <= room else Ended.CONTEXT
    texts = {number: Continued(number, ended=last) for number in numbers}
    open_texts = set(numbers)
    generators = [request.choice.generator(request.draws(number)) for number in numbers]
    cache, step = model.new_cache(), tokens
    for _ in range(min(request.longest, room)):
        logits = model.logits_of(model.residual(step, cache)[:, -1:])
        step = choose(logits[:, 0], request.choice, generators)[:, None]
        for number, token in zip(numbers, step[:, 0].tolist(), strict=True):
            if number not in open_texts:
                continue
            ended = _next(texts[number], token, request)
            if ended is not None:
                texts[number] = replace(texts[number], ended=ended)
                open_texts.remove(number)
        if not open_texts:
            break
    yield from texts.values()


def _next(text: Continued, token: int, request: Request) -> Ended | None:
    """Put a token behind a text; return why the text ends with it, None if it does not."""
    if token in request.ends:
        return Ended.END
    text.tokens.append(token)
    request.told(text.number, text.tokens)
    return Ended.STOP if request.stops(text.number, text.tokens) else None
