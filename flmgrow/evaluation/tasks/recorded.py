"""Tasks that make their items and examples themselves, and record what these are.

The results of a task tell, in its metadata, the version of what made its items and their digest.
Each item has examples of its own, which are the shots that are put before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from flmgrow.errors import UsageError
from flmgrow.evaluation.tasks.digest import digest_of
from flmgrow.text import Found, Setting, Text

NUMBER = "item_number"
"""The field of items and examples that says which belong together."""

NO_DATA = Text("give a file of JSON lines: ", Setting("data", "FILE.jsonl"))
"""What to do about a task without data."""


@dataclass(frozen=True)
class Splits:
    """The data of a task.

    ``named`` has the splits as lm-eval names them, ``examples`` is the name of that one if there is
    one, ``version`` that of what made them, and ``told`` is what else the results should say.
    """

    named: Mapping[str, Any]
    examples: str | None
    version: int
    told: Mapping[str, Any] = field(default_factory=dict)


class OwnExamples(ContextSampler):  # type: ignore[misc]
    """Gives an item its own examples: those that have its ``number``."""

    number = 0

    def sample(self, n: int, *_: object, **__: object) -> Sequence[dict[str, Any]]:
        """Return the first ``n`` examples of the item.

        Raises:
            UsageError: If there are fewer.
        """
        own = [doc for doc in self.df if doc[NUMBER] == self.number]
        if n > len(own):
            told = f": an item has {len(own)} examples at most"
            raise UsageError(Text(Setting("shots", n), told))
        return own[:n]


class RecordedTask(ConfigurableTask):  # type: ignore[misc]
    """A task that makes its own splits. A YAML file names a kind of it as ``class``."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        if self._examples is not None:
            self.sampler = OwnExamples(list(self.dataset[self._examples]))

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: object) -> None:
        """Make the data. lm-eval calls it, once."""
        splits = self.made(dataset_kwargs or {})
        self.dataset = splits.named
        self._examples = splits.examples
        self.VERSION = splits.version
        told = {"version": splits.version, "digest": digest_of(*splits.named.values())}
        self.config.metadata = {**self.config.metadata, **splits.told, **told}

    @property
    def seed(self) -> int:
        """What items are drawn from.

        Raises:
            UsageError: For what is no whole number.
        """
        found: object = self.config.metadata["seed"]
        if not isinstance(found, int) or isinstance(found, bool):
            what = Text(Setting("seed"), " is ", Found(repr(found)))
            raise UsageError(what, wanted="a whole number", where=self.config.task)
        return found

    def made(self, options: dict[str, Any]) -> Splits:
        """Return the data, from a seed and what the YAML file has under ``dataset_kwargs``."""
        raise NotImplementedError

    def fewshot_context(self, doc: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the prompt of an item, with its own examples before it. lm-eval calls it."""
        self.sampler.number = doc[NUMBER]
        return super().fewshot_context(doc, *arguments, **options)
