"""The part of a stage file that says what it reads."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from flmgrow.trainer.stage.section import (
    Count,
    FilePath,
    Name,
    Positive,
    Section,
    Seed,
    Share,
    token_text,
)

HELD_OUT = "held-out"
"""The name of the set that ``data.validation_share`` holds out of what is trained on."""


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


class ValidationCorpusSection(Section):
    """A prepared corpus that is validated on: the last ``share`` of its documents, 1 for all."""

    path: FilePath
    weight: Positive = 1.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class ValidationSetSection(Section):
    """A set of text by its ``name``, of which a validation reads so many ``samples``.

    A loss on the text that a model is trained on, in one proportion, says little of what it is
    worth on code, or in another language.
    """

    name: Name
    corpora: list[ValidationCorpusSection] = Field(min_length=1)
    samples: Count | None = None


class DataSection(Section):
    """What is read. ``validation_share`` of each corpus' documents, the last, is held out;
    ``validation_sets`` are others that are validated on, each under a name of its own.

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
    validation_sets: list[ValidationSetSection] = Field(default_factory=list)
    checksums: Literal["auto", "always", "never"] = "auto"
    seed: Seed = 1234
    differs: bool = False

    @model_validator(mode="after")
    def _sets_have_names(self) -> Self:
        seen = {HELD_OUT}
        for name in (each.name for each in self.validation_sets):
            if name in seen:
                taken = "is what validation_share holds out" if name == HELD_OUT else "stands twice"
                raise ValueError(f"validation_sets: the name {name} {taken}")
            seen.add(name)
        return self

    @property
    def validation_names(self) -> list[str]:
        """The sets that are validated on, by their names; what is held out comes first."""
        held_out = [HELD_OUT] if self.validation_share else []
        return held_out + [each.name for each in self.validation_sets]
