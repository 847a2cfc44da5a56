"""Texts that go on, in batches: one pass over the prompts, then one token for each at a time.

Texts of like lengths share a batch. Prompts are read in parts of even liker lengths, padded on the
right, and each text goes on at its own place, over its padding. What all prompts of a batch begin
with is computed once. Texts that have ended leave when they are a quarter of the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.generation.choosing import LIKELIEST, Choice, choose
from flmgrow.model.checks import check_whole
from flmgrow.model.config import ModelConfig
from flmgrow.model.module import Model
from flmgrow.model.places import Cache, Places, joined

_LEAVE = 4
"""Ended texts leave a batch when they are one in so many: what is known of the rest is copied."""

_WORTH = 64
"""Tokens that a pass of its own must save: for a few it costs as much."""
_PADDED = 1.25
"""How many times the tokens of prompts that are read together are computed, at most."""

Stops = Callable[[int, list[int]], bool]
"""Whether a text ends here, given its number and its new tokens."""


class EndReason(StrEnum):
    """Why a text ends."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"


@dataclass(frozen=True)
class GenerationRequest:
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
    ended: EndReason = EndReason.LENGTH


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


def longest(config: ModelConfig, tokens: int) -> int:
    """Return how long a text can get that begins with so many tokens.

    With LongRoPE what a cache holds of a short text is of no use once it is a long one: there it
    ends.
    """
    long = config.rotary.longrope
    return config.max_positions if long is None or tokens > long.context else long.context


def in_batches(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that go together, the longest first, ``most`` at a time."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    for start in range(0, len(order), most):
        yield order[start : start + most]


@torch.no_grad()
def continued(
    model: Model, prompts: Sequence[Sequence[int]], request: GenerationRequest
) -> Iterator[Continued]:
    """Yield how each prompt goes on, batch by batch.

    Raises:
        UsageError: As ``check_prompts`` does, and where memory does not suffice for one.
    """
    check_prompts(model, prompts)
    # How LongRoPE turns a token depends on the longest text of a batch: each is alone with it.
    most = request.batch if model.config.rotary.longrope is None else 1
    for numbers in in_batches(prompts, most):
        yield from _in_memory(model, {number: prompts[number] for number in numbers}, request)


def _in_memory(
    model: Model, prompts: Mapping[int, Sequence[int]], request: GenerationRequest
) -> Iterator[Continued]:
    """Yield how the texts of one batch go on, in two halves if they do not fit the memory."""
    try:
        yield from _Batch(model, prompts, request).texts()
        return
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise UsageError(
                "the memory does not suffice for one text",
                "give it a shorter one, or compute in a smaller dtype",
            ) from None
    numbers, half = [*prompts], len(prompts) // 2
    for part in (numbers[:half], numbers[half:]):
        yield from _in_memory(model, {number: prompts[number] for number in part}, request)


class _Batch:
    """Texts that go on together, row by row of a cache; ``prompts`` are by number."""

    def __init__(
        self, model: Model, prompts: Mapping[int, Sequence[int]], request: GenerationRequest
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._request = request
        self._device = next(model.parameters()).device
        self._rooms = {
            number: longest(model.config, len(prompt)) - len(prompt)
            for number, prompt in prompts.items()
        }
        self._texts = {number: self._begun(number) for number in prompts}
        self._rows = [number for number in prompts if self._rooms[number]]
        self._cache: Cache = model.new_cache()

    def _begun(self, number: int) -> Continued:
        enough = self._request.longest <= self._rooms[number]
        return Continued(number, ended=EndReason.LENGTH if enough else EndReason.CONTEXT)

    def texts(self) -> list[Continued]:
        """Return the texts, by their prompts' order, once all have ended."""
        choice, draws = self._request.choice, self._request.draws
        generators = {number: choice.generator(draws(number)) for number in self._rows}
        logits = self._read() if self._rows else None
        while logits is not None:
            step = choose(logits, choice, [generators[number] for number in self._rows])
            logits = self._go_on(step)
        return [*self._texts.values()]

    def _read(self) -> Tensor:
        """Return the logits (b, v) of what follows the prompts."""
        prompts = [self._prompts[number] for number in self._rows]
        shared = _shared(prompts)
        if shared:
            self._model.residual(self._ids([prompts[0][:shared]]), self._cache)
        last, caches = [], []
        for part in _parts(prompts, shared):
            own = (
                self._cache.rows(self._ids([0] * len(part))) if shared else self._model.new_cache()
            )
            last.append(self._read_part([prompt[shared:] for prompt in part], own))
            caches.append(own)
        self._cache = joined(caches)
        return self._model.logits_of(torch.cat(last)[:, None])[:, 0]

    def _read_part(self, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
        """Return the last residuals (n, h) of prompts, the longest first, that ``cache`` takes."""
        ends = [[*prompt, *[0] * (len(prompts[0]) - len(prompt))] for prompt in prompts]
        x = self._model.residual(self._ids(ends), cache)
        last = self._ids([len(prompt) - 1 for prompt in prompts])
        return x[torch.arange(len(prompts), device=self._device), last]

    def _go_on(self, step: Tensor) -> Tensor | None:
        """Put the tokens ``step`` (b,) behind the texts, and return the logits (b, v) of what
        follows them; None if no text goes on.
        """
        ended = [
            self._hear(number, token)
            for number, token in zip(self._rows, step.tolist(), strict=True)
        ]
        if all(ended):
            return None
        if _LEAVE * sum(ended) >= len(ended):
            kept = self._ids([row for row, gone in enumerate(ended) if not gone])
            step = step[kept]
            self._rows = [self._rows[row] for row in kept.tolist()]
            self._cache = self._cache.rows(kept)
        places = self._places()
        x = self._model.residual(step[:, None], self._cache, places)
        return self._model.logits_of(x)[:, 0]

    def _places(self) -> Places | None:
        """Return where the next tokens stand; None if that is behind all that the cache has."""
        lengths = [len(self._prompts[row]) + len(self._texts[row].tokens) - 1 for row in self._rows]
        if min(lengths) == self._cache.length:
            return None
        known = max(self._cache.length, max(lengths) + 1)
        slots = self._ids(lengths)[:, None]
        sees = torch.arange(known, device=self._device) <= slots[..., None]
        return Places(slots, sees, slots)

    def _hear(self, number: int, token: int) -> bool:
        """Put a token behind a text, unless it has ended; return whether it has now."""
        text = self._texts[number]
        most = min(self._request.longest, self._rooms[number])
        if text.ended in (EndReason.END, EndReason.STOP) or len(text.tokens) == most:
            return True
        ended = _next(text, token, self._request)
        if ended is not None:
            self._texts[number] = replace(text, ended=ended)
        return ended is not None or len(text.tokens) == most

    def _ids(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._device)


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, if it is worth while; each has one more."""
    least = min(map(len, prompts)) - 1
    columns = zip(*(prompt[:least] for prompt in prompts), strict=True)
    shared = next((at for at, ids in enumerate(columns) if len({*ids}) > 1), least)
    return shared if shared * (len(prompts) - 1) >= _WORTH else 0


def _parts(prompts: Sequence[Sequence[int]], shared: int) -> Iterator[Sequence[Sequence[int]]]:
    """Yield prompts, the longest first, in parts that are read together."""
    start, total = 0, 0
    for at, prompt in enumerate(prompts):
        padded = (len(prompts[start]) - shared) * (at - start + 1)
        total += len(prompt) - shared
        if padded > _PADDED * total + _WORTH:
            yield prompts[start:at]
            start, total = at, len(prompt) - shared
    yield prompts[start:]


def _next(text: Continued, token: int, request: GenerationRequest) -> EndReason | None:
    """Put a token behind a text; return why the text ends with it, None if it does not."""
    if token in request.ends:
        return EndReason.END
    text.tokens.append(token)
    request.told(text.number, text.tokens)
    return EndReason.STOP if request.stops(text.number, text.tokens) else None
