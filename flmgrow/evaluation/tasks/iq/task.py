"""Generated items as a task of lm-eval."""

from typing import Any

from datasets import Dataset, DatasetDict

from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.iq.items import EXAMPLES, SHOWN, documents, make
from flmgrow.evaluation.tasks.recorded import RecordedTask, Splits


class GeneratedTask(RecordedTask):
    """A task whose items a generator makes, from the ``seed`` in its metadata.

    Its YAML file names the ``generator`` and how many ``items`` there are, in ``dataset_kwargs``.
    """

    def made(self, options: dict[str, Any]) -> Splits:
        """Return items and examples."""
        generator = GENERATORS[options["generator"]]
        examples = EXAMPLES if self.config.num_fewshot else 0
        made = make(generator, self.seed, options["items"], examples)
        splits = {name: Dataset.from_list(rows) for name, rows in documents(made).items()}
        return Splits(DatasetDict(splits), SHOWN, generator.version, {"chance": generator.chance})
