"""Generated items as a task of lm-eval."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.samplers import ContextSampler

from flmgrow.errors import UsageError
from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.iq.items import EXAMPLES, SHOWN, documents, make
from flmgrow.evaluation.tasks.recorded import RecordedTask
from flmgrow.text import Setting, Text


class OwnExamples(ContextSampler):  # type: ignore[misc]
    """Gives an item its own examples: those that have its number, ``item``."""

    item = 0

    def sample(self, n: int, *_: object, **__: object) -> Sequence[dict[str, Any]]:
        """Return the first ``n`` examples of the item. Raises UsageError if there are fewer."""
        own = [doc for doc in self.df if doc["item"] == self.item]
        if n > len(own):
            told = f": an item has {len(own)} examples at most"
            raise UsageError(Text(Setting("shots", n), told))
        return own[:n]


class GeneratedTask(RecordedTask):
    """A task whose items a generator makes, from the ``seed`` in its metadata.

    Its YAML file names the ``generator`` and how many ``items`` there are, in ``dataset_kwargs``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.sampler = OwnExamples(list(self.dataset[SHOWN]))

    def made(self, options: dict[str, Any]) -> tuple[Any, int]:
        """Return items and examples, and the generator's version."""
        generator = GENERATORS[options["generator"]]
        examples = EXAMPLES if self.config.num_fewshot else 0
        made = make(generator, self.config.metadata["seed"], options["items"], examples)
        splits = {name: Dataset.from_list(rows) for name, rows in documents(made).items()}
        return DatasetDict(splits), generator.version

    def fewshot_context(self, doc: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the prompt of an item with its own examples. lm-eval calls it."""
        self.sampler.item = doc["item"]
        return super().fewshot_context(doc, *arguments, **options)
