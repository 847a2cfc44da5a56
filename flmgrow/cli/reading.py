"""Opening a source as the options of every command say that reads one."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flmgrow.cli import options
from flmgrow.cli.printing import note
from flmgrow.formats.checkpoint import Checkpoint, ReadOptions
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.opened import Source, opened, opened_source


@dataclass(frozen=True)
class SourceOptions:
    """How to open a source: the options that every command has which reads one."""

    ignore_arg: options.IgnoreArgument = None
    set_arg: options.SetArgument = None
    args_from: options.ArgumentsFrom = None
    ignore_field: options.IgnoreField = None
    max_position_embeddings: options.MaxPositions = None
    untie: options.Untie = None
    true_vocab_size: options.TrueVocab = None

    @cached_property
    def given_arguments(self) -> dict[str, object]:
        """The arguments given in the place of the source's; notes on them go to stderr, once."""
        elsewhere: dict[str, object] = {}
        if self.args_from is not None:
            from flmgrow.formats.arguments_elsewhere import arguments_from  # most give none

            elsewhere, notes = arguments_from(self.args_from)
            for text in notes:
                note(text)
        return {**elsewhere, **parse_given(self.set_arg or ())}

    def open(
        self,
        path: Path,
        iteration: int | None = None,
        fused: bool = True,
        look_only: bool = False,
        only_missing: bool = False,
    ) -> Source:
        """Open the checkpoint at ``path``, fetched first if it is on the Hub; the caller closes
        it. What is to be known of how it was read is told on stderr.

        ``only_missing``: no argument that is given changes one that is stored.
        """
        options = self.options(fused=fused, look_only=look_only, only_missing=only_missing)
        return _told(opened(path, iteration, options))

    def open_source_of(self, path: Path, result: Source) -> Source:
        """Open the source of ``result`` as it was read when that was made, unless options say how.

        Told on stderr, and closed, as by :meth:`open`.
        """
        return _told(opened_source(path, result.checkpoint, self.options()))

    def options(
        self, *, fused: bool = True, look_only: bool = False, only_missing: bool = False
    ) -> ReadOptions:
        """Return what the options say about a source."""
        return ReadOptions(
            ignored_arguments=tuple(self.ignore_arg or ()),
            ignored_fields=tuple(self.ignore_field or ()),
            max_positions=self.max_position_embeddings,
            untie=self.untie,
            true_vocab=self.true_vocab_size,
            fused=fused,
            look_only=look_only,
            given_arguments=self.given_arguments,
            only_missing=only_missing,
        )


def _told(found: Checkpoint) -> Source:
    for text in found.notes:
        note(text)
    return Source(found)
