"""The part of a stage file that says what it reads."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flmgrow.trainer.stage.section import (
    Count,
    FilePath,
    Positive,
    Section,
    Seed,
    Share,
    token_text,
)


class _SourceSection(Section):
    """What samples come from. With ``begin: anew`` a stage reads it from its first sample on,
    whatever was read of it before; without, from where the run has left it.
    """

    begin: Literal["anew"] | None = None

    @property
    def anew(self) -> bool:
        """Whether its texts may be read again."""
        return self.begin is not None


class CorpusSection(_SourceSection):
    """A corpus that ``flmgrow data prepare`` made (or Megatron's prefix), and its weight."""

    path: FilePath
    weight: Positive = 1.0


class TeacherSection(_SourceSection):
    """Propositions with their truth (.jsonl), and their share of the samples."""

    files: list[FilePath] = Field(min_length=1)
    share: Annotated[float, Field(gt=0, lt=1)]
    packed: bool = True


class DataSection(Section):
    """What is read. ``validation_share`` of each corpus' documents, the last, is held out.

    ``document_attention`` lets attention stop, and positions restart, at each document of a sample.

    ``checksums`` says whether all tokens are read and summed when a stage begins: ``auto`` does so
    for corpora up to a gigabyte. ``differs`` says that the stage may read other data than its
    checkpoint has: each corpus is taken up where the run has left it.
    """

    tokenizer: str = "bytes"
    eod: Annotated[str, BeforeValidator(token_text)] | None = None
    sequence_length: Count
    document_attention: bool = False
    corpora: list[CorpusSection] = Field(min_length=1)
    teacher: TeacherSection | None = None
    validation_share: Share = 0.0
    checksums: Literal["auto", "always", "never"] = "auto"
    seed: Seed = 1234
    differs: bool = False
