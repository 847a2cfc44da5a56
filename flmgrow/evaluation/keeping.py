"""A model of the harness's, whichever backend computes it, whose answers are kept and shared.

The harness hands over all questions of a kind at once and wants all answers back. Models tell of
each as it comes, through the hook that the harness has for its own cache; here it leads to a file.
Processes that share the work each answer some of the questions that are open, and hear of the rest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from flmgrow.evaluation.answers import GENERATE, LOG_LIKELIHOOD, ROLLING, Answer, Answers, key_of
from flmgrow.evaluation.peers import ALONE, Peers


class KeptModel(LM):  # type: ignore[misc]  # the harness has no types
    """``model``, which is asked only what is not among ``answers`` yet, its share of ``peers``.

    To the harness it is one process, on each of them: all have all answers. A question that comes
    twice is asked once. Texts that are drawn are kept when all of a question are there, since each
    is another. Raises, on all processes, what one of them meets.
    """

    def __init__(self, model: LM, answers: Answers, peers: Peers = ALONE) -> None:
        super().__init__()
        self.model = model
        self.answers = answers
        self._peers = peers
        for each in peers.gathered(answers.known):  # one that came late has read more files
            answers.learn(each)
        model.set_cache_hook(_Hook(answers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    @property
    def device(self) -> Any:
        """The device that the model computes on."""
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        """What the tokenizer is called."""
        return str(self.model.tokenizer_name)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template of conversations."""
        found: str | None = self.model.chat_template(chat_template)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as one text."""
        return str(self.model.apply_chat_template(chat_history, add_generation_prompt))

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the likeliest."""
        return self._answered(LOG_LIKELIHOOD, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text."""
        return self._answered(ROLLING, requests, disable_tqdm)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what each context goes on with."""
        return self._answered(GENERATE, requests, disable_tqdm)

    def _answered(self, kind: str, requests: Sequence[Instance], quiet: bool) -> list[Any]:
        keys = keys_of(kind, requests)
        asked = self._open(keys, requests)
        if asked:
            own = self._share(asked)
            found = self._peers.together(lambda: self._ask(kind, own, quiet or self._peers.rank))
            for each in self._peers.gathered(found):
                self.answers.learn(each)
        return [self.answers[key] for key in keys]

    def _open(self, keys: Sequence[str], requests: Sequence[Instance]) -> dict[str, Instance]:
        """Return the questions that have no answer yet, with those drawn along with them."""
        groups = {_group(key) for key in keys if key not in self.answers}
        return {
            key: each for key, each in zip(keys, requests, strict=True) if _group(key) in groups
        }

    def _share(self, asked: Mapping[str, Instance]) -> dict[str, Instance]:
        """Return what this process answers, at least one question: backends wait for each other.

        Questions with one context, whose beginning is computed once, stay together.
        """
        contexts: dict[str, int] = {}
        for request in asked.values():
            contexts.setdefault(request.args[0], len(contexts))
        own = {
            key: each
            for key, each in asked.items()
            if contexts[each.args[0]] % self._peers.size == self._peers.rank
        }
        return own or dict([next(iter(asked.items()))])

    def _ask(self, kind: str, own: Mapping[str, Instance], quiet: object) -> dict[str, Answer]:
        answer: Callable[..., list[Answer]] = getattr(self.model, kind)
        found = dict(zip(own, answer([*own.values()], disable_tqdm=bool(quiet)), strict=True))
        for key, each in found.items():
            self.answers.keep(key, each)
        self.answers.sync()
        return found


class _Hook:
    """Takes the place of the harness's cache: hears of each answer as it comes."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def add_partial(self, kind: str, asked: Iterable[Any], answer: Answer) -> None:
        """Keep an answer, unless it was drawn."""
        words = list(asked)
        if not _draws(kind, words):
            self._answers.keep(key_of(kind, *words), answer)


def _draws(kind: str, asked: Sequence[Any]) -> bool:
    """Whether an answer is one of many that could have been drawn."""
    if kind != GENERATE:
        return False
    settings = asked[1]
    return bool(settings.get("do_sample") or settings.get("temperature"))


def _group(key: str) -> str:
    """Return what the names of all texts have in common that are drawn for one question."""
    return key.partition("#")[0]


def keys_of(kind: str, requests: Sequence[Instance]) -> list[str]:
    """Return the names of questions; those of drawn texts count how often the question came."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = key_of(kind, *request.args)
        if _draws(kind, request.args):
            key = key_of(kind, *request.args, request.task_name, request.doc_id, request.idx)
            seen[key] += 1
            key = f"{key}#{seen[key]}"
        keys.append(key)
    return keys
