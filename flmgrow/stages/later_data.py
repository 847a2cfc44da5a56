"""The data of a schedule's later stages, which may be other than that of the stages before.

A stage may bring its own. Then each corpus goes on where the run has left it, which can be said in
one order of its samples only: what a stage would be refused for when it begins, after days, is
refused before the first one does.
"""

from collections.abc import Sequence

from flmgrow.errors import UsageError
from flmgrow.storage.strict_yaml import dotted
from flmgrow.trainer.data.samples import changes
from flmgrow.trainer.stage.data import DataSection

ORDER = {"sequence_length", "seed", "validation_share"}
"""What decides, beside the texts, on which samples they make."""


def data_after(before: DataSection, data: DataSection) -> DataSection:
    """Return the data of a stage as its own file says it, after a stage with the data ``before``.

    A schedule that says other data for a stage asks for it.
    """
    was, now = (
        dotted(each.model_dump(mode="json", exclude={"differs", "validation_sets"}))
        for each in (before, data)
    )
    return data.model_copy(update={"differs": True}) if changes(was, now) else data


def check_orders(earlier: Sequence[DataSection], data: DataSection) -> None:
    """Raise UsageError if ``data`` has texts of earlier stages in another order, unasked."""
    for number, corpus in enumerate(data.corpora):
        for before in reversed(earlier):
            if corpus.path not in [each.path for each in before.corpora]:
                continue
            if not corpus.anew and (differing := changes(*_orders(before, data))):
                key = f"data.corpora.{number}"
                raise UsageError(
                    f"{key}: {corpus.path.name} is read in another order than before: {differing}",
                    "which of its texts were read cannot be said in this one; say "
                    f"{key}.begin: anew, if they may be read again",
                )
            break


def _orders(*data: DataSection) -> list[dict[str, object]]:
    return [dotted(each.model_dump(mode="json", include=ORDER), "data.") for each in data]
