"""What a run has read, from its first token on: which data, from where to where, how far in each.

Stages may read other corpora, in other proportions, or in longer sequences. Then one number of
samples no longer says which texts a model has seen. So a checkpoint keeps a line of *readings*:
stretches of the run in which one sequence of samples was read, with the place that it reached in
each corpus. A later stage finds there where a corpus goes on.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Number = Annotated[int, Field(ge=0, le=1 << 62)]


class CorpusReading(BaseModel):
    """How far a corpus was read: samples ``begin`` up to ``end`` of it, over all its epochs.

    ``texts`` is a digest of what it holds, ``order`` of the sequence that is read of it: the same
    texts have another order with another seed, length of samples, or share held out.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    name: str
    texts: str
    order: str
    begin: _Number
    end: _Number


class Stretch(BaseModel):
    """A stretch of a run that read one sequence of samples, the one with the digest ``data``.

    It began when the run had consumed ``begin`` samples, and sample ``origin`` of the run is the
    sequence's first. ``sequence_length`` is in tokens.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    data: str
    begin: _Number
    origin: _Number
    sequence_length: Annotated[int, Field(ge=1, le=1 << 62)]
    corpora: list[CorpusReading]


class PassedOver(BaseModel):
    """Samples ``begin`` up to ``end``, by the run's own count, that it consumed and did not train
    on: they had led to a spike.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    begin: _Number
    end: _Number
