"""Prompts in, texts out: a model, its tokenizer, and where texts end, put together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from flmgrow.generation.choosing import Choice
from flmgrow.generation.decoding import EndReason, GenerationRequest, continued
from flmgrow.generation.speech import Speech, Stream
from flmgrow.given import SayingGiven
from flmgrow.model.module import Model
from flmgrow.storage.strict_json import Json

Told = Callable[[int, str], object]
"""Hears what a text goes on with as it comes: the prompt's number, and what is new."""


@dataclass(frozen=True)
class Said:
    """A prompt, the ``text`` that it went on with, and why that ended.

    ``number`` is the prompt's place among others. ``tokens`` are the new ids, without the one that
    ended the text; ``prompt_tokens`` is how many the prompt has.
    """

    number: int
    prompt: str
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    ended: EndReason

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "tokens": list(self.tokens),
            "prompt_tokens": self.prompt_tokens,
            "ended": str(self.ended),
        }


def request_of(saying: SayingGiven) -> GenerationRequest:
    """Return the request that is meant.

    Raises:
        UsageError: For one that cannot be.
    """
    usual = GenerationRequest()
    return GenerationRequest(
        Choice(
            saying.get("temperature", usual.choice.temperature),
            saying.get("top_k", usual.choice.top_k),
            saying.get("top_p", usual.choice.top_p),
            saying.get("seed", usual.choice.seed),
        ),
        saying.get("max_new_tokens", usual.longest),
        batch=saying.get("batch_size", usual.batch),
    )


@dataclass(frozen=True)
class Session:
    """A model that speaks by ``speech``; a text ends before any of ``stops``, too."""

    model: Model
    speech: Speech
    stops: Sequence[str] = ()

    def say(
        self, prompts: Sequence[str], request: GenerationRequest, told: Told | None = None
    ) -> Iterator[Said]:
        """Yield what each prompt goes on with, in batches of like lengths.

        With ``stops``, nothing is told as it comes: it might be taken back.

        Raises:
            UsageError: For a prompt that the model cannot read.
        """
        ids = [self.speech.encode(prompt) for prompt in prompts]
        streams = [Stream(self.speech, own) for own in ids]
        speaks = told is not None and not self.stops

        def stop(number: int, tokens: list[int]) -> bool:
            return bool(self.stops) and self._end(self._text(ids[number], tokens)) is not None

        def hear(number: int, tokens: list[int]) -> None:
            if told is not None and speaks:
                told(number, streams[number].more(tokens))

        wanted = replace(request, ends=self.speech.ends, stops=stop, told=hear)
        for each in continued(self.model, ids, wanted):
            text = self._text(ids[each.number], each.tokens)
            text = text[: self._end(text)]
            if told is not None:
                told(each.number, streams[each.number].more(each.tokens, last=True) if speaks
                     else text)  # fmt: skip
            prompt, known = prompts[each.number], len(ids[each.number])
            yield Said(each.number, prompt, text, tuple(each.tokens), known, each.ended)

    def _text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        return self.speech.continuation(prompt, tokens)

    def _end(self, text: str) -> int | None:
        """Where the first of ``stops`` stands in a text; None if none does."""
        return min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)
