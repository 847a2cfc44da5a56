"""Any classification set as a task of lm-eval, with symbols in place of its labels."""

from collections import Counter
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.evaluation.tasks.recorded import NO_DATA, NUMBER, RecordedTask, Splits
from flmgrow.evaluation.tasks.symbolic.mapping import VERSION, choose, classes_of, symbols
from flmgrow.text import Found, Text

SYMBOL, SYMBOLS = "label_symbol", "label_symbols"
"""The fields with an item's symbol, as its place among all of them, and with all of them."""

LABEL = "label"
TRAINING = "train"


class SymbolicTask(RecordedTask):
    """A task over a set of the Hub, or over files, whose labels lie under ``label``.

    Items come from the set's validation split, examples from its training split if there is one.
    """

    def made(self, options: dict[str, Any]) -> Splits:
        """Return items and examples.

        Raises:
            UsageError: For a set that will not do.
        """
        if not options and self.config.dataset_path is None:
            raise UsageError("no data set", NO_DATA, where=self.config.task)
        ConfigurableTask.download(self, options)
        tested = self.config.validation_split
        try:
            named = _mapped(self.dataset, tested, self.config.task, self.seed)
        except FlmgrowError as error:
            raise error.at(self.config.task) from None
        counts = Counter(named[tested][SYMBOL])
        told = {"classes": len(counts), "chance": max(counts.values()) / counts.total()}
        return Splits(DatasetDict(named), TRAINING, VERSION, told)


def _mapped(splits: Any, tested: str, task: str, seed: int) -> dict[str, Any]:
    """Return the items of the tested split, and the examples of each, with their symbols."""
    source = splits.get(TRAINING)
    for split in filter(None, (splits[tested], source)):
        if LABEL not in split.column_names:
            found = Found(", ".join(split.column_names))
            raise BadDataError(Text("has ", found), wanted=f"the field {LABEL}")
    labels = list(splits[tested][LABEL])
    choice = choose(seed, task, labels, None if source is None else list(source[LABEL]))
    classes = classes_of(labels)
    names = symbols(seed, task, len(classes))

    def document(number: int, row: dict[str, Any]) -> dict[str, Any]:
        place = classes.index(row[LABEL])
        return {**row, NUMBER: number, SYMBOL: place, SYMBOLS: names}

    items = [document(n, splits[tested][place]) for n, place in enumerate(choice.tested)]
    shown = splits[tested] if source is None else source
    examples = [
        document(n, shown[place]) for n, places in enumerate(choice.shown) for place in places
    ]
    return {tested: Dataset.from_list(items), TRAINING: Dataset.from_list(examples)}
