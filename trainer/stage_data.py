"""The data section of a stage as samples: what is trained on, and what is held out of it.

All ranks build the same samples. Of every corpus the last documents are held out, as many as the
validation share says; they are validated on one after the other, always the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from flmgrow.errors import UsageError
from flmgrow.formats.training_state import TokenizerFacts
from flmgrow.trainer.corpora import Corpus
from flmgrow.trainer.data import SHOWN, Blend, Keys, Samples, weights_of
from flmgrow.trainer.data_prepare import PREFIX
from flmgrow.trainer.freelm import Teacher, mixed, read_propositions
from flmgrow.trainer.indexed import read_index
from flmgrow.trainer.stage_sections import CorpusSection, DataSection
from flmgrow.trainer.tokenizers import Tokenizer, open_tokenizer

_OPTION = re.compile(r"--(tokenizer|eod)\b")


@dataclass(frozen=True, eq=False)
class StageData:
    """``training`` samples, and those held out for validation, if any.

    ``keys`` are what decides on the training samples, by the stage file's keys.
    """

    tokenizer: Tokenizer
    training: Samples
    held_out: Samples | None
    keys: Keys

    @property
    def facts(self) -> TokenizerFacts:
        """What a checkpoint remembers of the tokenizer."""
        return TokenizerFacts.model_validate(self.tokenizer.identity)


def open_data(data: DataSection) -> StageData:
    """Return the samples that a data section describes.

    Raises UsageError or BadDataError for what cannot be read or is too short.
    """
    tokenizer = _tokenizer(data)
    weights = weights_of([str(corpus.weight) for corpus in data.corpora])
    spans = [_split(corpus, data) for corpus in data.corpora]
    used = [
        _corpus(c, tokenizer, data, span) for c, (span, _) in zip(data.corpora, spans, strict=True)
    ]
    keys = {**_keys(data, tokenizer), **_keys_of_corpora(data, used)}
    training: Samples = used[0] if len(used) == 1 else Blend(used, weights)
    if data.teacher is not None:
        propositions = list(read_propositions(data.teacher.files))
        teacher = Teacher(
            propositions,
            tokenizer,
            data.sequence_length,
            data.seed,
            packed=data.teacher.packed,
        )
        keys |= {
            "data.teacher.files": teacher.summary,
            "data.teacher.share": data.teacher.share,
            "data.teacher.packed": data.teacher.packed,
        }
        training = mixed(training, teacher, Fraction(str(data.teacher.share)))
    if not data.validation_share:
        return StageData(tokenizer, training, None, keys)
    rest = [
        _corpus(c, tokenizer, data, span) for c, (_, span) in zip(data.corpora, spans, strict=True)
    ]
    held_out = rest[0] if len(rest) == 1 else Blend(rest, weights)
    return StageData(tokenizer, training, held_out, keys)


def _keys(data: DataSection, tokenizer: Tokenizer) -> Keys:
    """Return what decides on samples beside the texts."""
    facts = TokenizerFacts.model_validate(tokenizer.identity)
    digest = f", digest {facts.sha256[:SHOWN]}" if facts.sha256 else ""
    return {
        "data.tokenizer": f"{facts.kind} of {facts.vocab_size:,} ids{digest}",
        "data.eod": facts.eod,
        "data.sequence_length": data.sequence_length,
        "data.seed": data.seed,
        "data.validation_share": data.validation_share,
    }


def _keys_of_corpora(data: DataSection, corpora: Sequence[Corpus]) -> Keys:
    keys: dict[str, str | float] = {}
    for number, (section, corpus) in enumerate(zip(data.corpora, corpora, strict=True)):
        keys[f"data.corpora.{number}.path"] = f"{section.path.name} ({corpus.summary})"
        keys[f"data.corpora.{number}.weight"] = section.weight
    return keys


def _tokenizer(data: DataSection) -> Tokenizer:
    """Return the tokenizer; errors speak of the section's keys instead of the command's options."""
    try:
        return open_tokenizer(data.tokenizer, data.eod)
    except UsageError as error:
        message, hint = (_OPTION.sub(r"data.\1", text) for text in (error.message, error.hint))
        raise UsageError(message, hint) from None


def _split(corpus: CorpusSection, data: DataSection) -> tuple[range, range]:
    """Return which documents are trained on, and which are held out."""
    prefix = corpus.path / PREFIX if corpus.path.is_dir() else corpus.path
    count = len(read_index(prefix.with_name(prefix.name + ".idx")).lengths)
    held = ceil(count * data.validation_share)
    if held >= count:
        raise UsageError(
            f"{corpus.path}: {count} documents, of which {held} would be held out",
            "make validation_share smaller, or prepare more documents",
        )
    return range(count - held), range(count - held, count)


def _corpus(
    corpus: CorpusSection, tokenizer: Tokenizer, data: DataSection, documents: range
) -> Corpus:
    return Corpus(corpus.path, tokenizer, data.sequence_length, data.seed, documents)
