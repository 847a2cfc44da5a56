"""A checkpoint in any format as a model of lm-evaluation-harness, without converting it first.

Texts become tokens, and long ones are cut, by the rules of the harness's own ``hf`` model
(lm_eval 0.4.13, ``models/huggingface.py``), so that both give the same scores.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from flmgrow.errors import UsageError
from flmgrow.evaluation.answers import GENERATE, LOG_LIKELIHOOD, ROLLING
from flmgrow.evaluation.keeping import keys_of
from flmgrow.evaluation.room import GENERATED, check_room
from flmgrow.evaluation.scoring import ContinuationScore, Question, check_ids, scores
from flmgrow.evaluation.tokens import HarnessTokenizer
from flmgrow.generation.choosing import Choice
from flmgrow.generation.decoding import GenerationRequest, continued
from flmgrow.model.module import Model

WINDOWS = 256
"""Windows of long texts that are computed before the texts they end are kept."""
BATCH = 16
"""Texts that are generated at once, at most, unless somebody says otherwise."""
_WHOLE = 8
_NEUTRAL: Mapping[str, object] = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
"""Settings of generation that change nothing, with the values that do not."""

Tokenized = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request as the harness hands it on: its texts, and the ids of context and continuation."""


class NativeModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """``model`` behind the harness's interface, asked in the words of ``tokens``.

    ``batch_size`` is how many texts are computed at once, at most.

    Raises:
        UsageError: For a text that the model cannot read, and for what it cannot do.
    """

    def __init__(
        self, model: Model, tokens: HarnessTokenizer, batch_size: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokens.tokenizer
        self._tokens = tokens
        self._batch = batch_size
        self._device = next(model.parameters()).device

    @property
    def max_length(self) -> int:
        """How many tokens the model reads."""
        return self.model.config.max_positions

    @property
    def batch_size(self) -> int | str:
        """How many texts are computed at once, for the harness's result file."""
        return "auto" if self._batch is None else self._batch

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text."""
        found: int | None = self.tokenizer.eos_token_id
        return min(self._tokens.ends, default=None) if found is None else found

    @property
    def prefix_token_id(self) -> int:
        """The id in front of a text without a context.

        Raises:
            UsageError: If nothing says which.
        """
        if self._tokens.prefix is None:
            raise UsageError(
                "a text without a context needs an id in front of it, and nothing says which id "
                "begins or ends a text",
                "give a tokenizer that names it",
            )
        return self._tokens.prefix

    @property
    def tokenizer_name(self) -> str:
        """What the tokenizer is called among the harness's kept requests."""
        content = self.tokenizer.backend_tokenizer.to_str().encode()
        return hashlib.sha256(content).hexdigest()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return the ids of a text.

        Special tokens are put around it as the tokenizer's template says, unless the text begins
        with the first of them already.
        """
        special = add_special_tokens
        if special is None:
            first = self._tokens.prefix
            begins = None if first is None else self.tokenizer.decode(first)
            special = not has_bos_prefix(string, begins)
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=special)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as one text, as the tokenizer's template has it."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(
        self, requests: Sequence[Tokenized], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        def hear(number: int, found: tuple[float, bool]) -> None:
            if (texts := requests[number][0]) is not None:
                self.cache_hook.add_partial(LOG_LIKELIHOOD, texts, found)

        return self._scores(requests, disable_tqdm, hear)

    def _scores(
        self,
        requests: Sequence[Tokenized],
        quiet: bool,
        told: Callable[[int, tuple[float, bool]], None],
        part: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return the answers to requests; ``told`` hears of each as it comes, by its number.

        Of those in a ``part``, so many that follow each other, the longest come first.
        """
        questions = [Question(tuple(before), tuple(after)) for _, before, after in requests]
        found: list[tuple[float, bool]] = []
        with self._bar(len(questions), "log-likelihoods", quiet) as bar:

            def hear(number: int, score: ContinuationScore) -> None:
                told(len(found) + number, _pair(score))
                bar.update()

            while len(found) < len(questions):
                own = questions[len(found) :][:part]
                found += [_pair(each) for each in scores(self.model, own, self._batch, hear)]
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the model reads."""
        windows: list[Tokenized] = []
        owners: list[int] = []
        for number, (text,) in enumerate(request.args for request in requests):
            own = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            windows += [(None, *make_disjoint_window(pair)) for pair in own]
            owners += [number] * (len(windows) - len(owners))
        parts: list[dict[int, float]] = [{} for _ in requests]
        counts = Counter(owners)

        def total(number: int) -> float:
            return sum(found for _, found in sorted(parts[number].items()))

        def hear(place: int, found: tuple[float, bool]) -> None:
            number = owners[place]
            parts[number][place] = found[0]
            if len(parts[number]) == counts[number]:
                self.cache_hook.add_partial(ROLLING, requests[number].args, total(number))

        self._scores(windows, disable_tqdm, hear, WINDOWS)
        return [total(number) for number in range(len(requests))]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what each context goes on with, up to the texts that end it."""
        check_room(requests, self.max_length)
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(repr(request.args[1]), []).append(number)
        texts: dict[int, str] = {}
        draws = _numbers(requests)
        with self._bar(len(requests), "texts", disable_tqdm) as bar:
            for numbers in by_settings.values():
                contexts = [requests[number].args[0] for number in numbers]
                settings = normalize_gen_kwargs(requests[numbers[0]].args[1], GENERATED)
                own = [draws[number] for number in numbers]
                for place, text in self._texts(contexts, settings, own):
                    request = requests[numbers[place]]
                    self.cache_hook.add_partial(GENERATE, request.args, text)
                    texts[numbers[place]] = text
                    bar.update()
        return [texts[number] for number in range(len(requests))]

    def _texts(
        self, contexts: Sequence[str], settings: dict[str, Any], draws: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """Yield what contexts go on with, by their places."""
        until = [str(stop) for stop in settings.pop("until") if stop]
        longest: int = settings.pop("max_gen_toks")
        room = self.max_length - longest
        prompts = [self._prompt(context)[-room:] for context in contexts]
        for prompt in prompts:
            check_ids(prompt, self.model.config)

        longest_stop = max((len(stop.encode()) for stop in until), default=0)

        def stops(_: int, ids: list[int]) -> bool:
            # A token has one byte at least, so a stop that is new lies in as many; a few more let
            # characters be whole. Then all is read, as it will be at the end.
            tail = self._text(ids[-(longest_stop + _WHOLE) :])
            return (
                any(stop in tail for stop in until)
                and _first_of(until, self._text(ids)) is not None
            )

        request = GenerationRequest(
            _choice(settings),
            longest,
            ends=self._tokens.ends,
            batch=self._batch or BATCH,
            stops=stops if until else lambda _, __: False,
            draws=draws.__getitem__,
        )
        for each in continued(self.model, prompts, request):
            text = self._text(each.tokens)
            yield each.number, text[: _first_of(until, text)]

    def _prompt(self, context: str) -> list[int]:
        special = not has_bos_prefix(context, self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer.encode(context, add_special_tokens=special)
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _bar(self, count: int, what: str, quiet: bool) -> Any:
        return tqdm(total=count, desc=what, disable=quiet or self.rank != 0)


def _pair(score: ContinuationScore) -> tuple[float, bool]:
    return score.log_likelihood, score.greedy


def _first_of(stops: Sequence[str], text: str) -> int | None:
    """Where the first of ``stops`` stands in a text; None if none does."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def _choice(settings: Mapping[str, Any]) -> Choice:
    """Return how tokens are chosen.

    Raises:
        UsageError: For what cannot be done.
    """
    known = {"do_sample", "temperature", "top_k", "top_p", "seed", *_NEUTRAL}
    strange = {
        name: value
        for name, value in settings.items()
        if name not in known or _NEUTRAL.get(name, value) != value
    }
    if strange:
        said = ", ".join(f"{name} {value}" for name, value in strange.items())
        raise UsageError(f"generation with {said}: not known here", "evaluate with backend hf")
    if not settings["do_sample"]:
        return Choice()
    usual = Choice(1.0)
    return Choice(
        settings.get("temperature", usual.temperature),
        settings.get("top_k", usual.top_k),
        settings.get("top_p", usual.top_p),
        settings.get("seed", usual.seed),
    )


def _numbers(requests: Sequence[Instance]) -> list[int]:
    """Return numbers for what texts draw, which do not depend on what else is asked."""
    digests = (hashlib.sha256(key.encode()).digest() for key in keys_of(GENERATE, requests))
    return [int.from_bytes(digest[:7]) for digest in digests]
