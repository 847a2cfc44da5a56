"""Whether a model tells true propositions from false ones, by the labels it is trained with.

FreeLM's teacher signal puts one of two emojis after a proposition (:mod:`flmgrow.trainer.data.
freelm`). Here the model is asked which of the two goes on with a text: as both labels begin with
the same tokens, that is the logit of the token that decides. Before any training with the signal
it is a guess; so accuracy is to be read beside the share of the more frequent label.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from flmgrow.errors import UsageError
from flmgrow.evaluation.tasks.recorded import NO_DATA, NUMBER, RecordedTask, Splits
from flmgrow.trainer.data.freelm import EMOJIS, read_propositions

VERSION = 1
TRUTHS = (False, True)
"""What the labels say, in the order of the choices."""


class TeacherTask(RecordedTask):
    """A task over files of propositions, as the trainer reads them."""

    def made(self, options: dict[str, Any]) -> Splits:
        """Return the propositions of the validation split.

        Raises:
            UsageError: If there are none.
        """
        path = options.get("files", {}).get(self.config.validation_split)
        if path is None:
            raise UsageError("no propositions", NO_DATA, where=self.config.task)
        propositions = list(read_propositions([Path(path)]))
        labels = [EMOJIS[truth] for truth in TRUTHS]
        rows = [
            {NUMBER: n, "text": one.text, "label": TRUTHS.index(one.label), "labels": labels}
            for n, one in enumerate(propositions)
        ]
        true = sum(one.label for one in propositions)
        told = {"chance": max(true, len(rows) - true) / len(rows)}
        splits = DatasetDict({self.config.validation_split: Dataset.from_list(rows)})
        return Splits(splits, None, VERSION, told)
