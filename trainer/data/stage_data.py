"""The data section of a stage as samples: what is trained on, and what is validated on.

All ranks build the same samples. Of every corpus the last documents are held out, as many as the
validation share says; they are validated on one after the other, always the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from flmgrow.errors import UsageError
from flmgrow.formats.history.training_state import TokenizerFacts
from flmgrow.text import Found, Text
from flmgrow.trainer.data.blends import weights_of
from flmgrow.trainer.data.corpora import Corpus, corpus_of
from flmgrow.trainer.data.corpus_files import CorpusFiles, open_corpus_files, samples_in
from flmgrow.trainer.data.freelm import Teacher, read_propositions
from flmgrow.trainer.data.mixture import Mixture, SampleSource
from flmgrow.trainer.data.samples import SHOWN, Keys, Samples, digest_of
from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.tokenizers import open_tokenizer
from flmgrow.trainer.data.validation import ValidationSet
from flmgrow.trainer.data.validation_sets import open_sets, set_of
from flmgrow.trainer.stage.data import HELD_OUT, CorpusSection, DataSection, TeacherSection
from flmgrow.trainer.stage.keys import in_words


@dataclass(frozen=True, eq=False)
class StageData:
    """``training`` samples, and the sets that are validated on, what is held out before others.

    ``training`` is the ``mixture`` from its first sample on. ``keys`` are what decides on it, by
    the stage file's keys. ``notes`` are what somebody may not expect of them.
    """

    tokenizer: Tokenizer
    mixture: Mixture
    validation: tuple[ValidationSet, ...]
    keys: Keys
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> Samples:
        """The mixture from its first sample on."""
        return self.mixture.samples()

    @property
    def validated(self) -> dict[str, str]:
        """What decides on each set that is validated on, in a digest."""
        return {
            f"the validation set {each.name}": digest_of(each.samples) for each in self.validation
        }

    @property
    def facts(self) -> TokenizerFacts:
        """What a checkpoint remembers of the tokenizer."""
        return TokenizerFacts.model_validate(self.tokenizer.identity)


def open_data(data: DataSection, *, sums: bool = True) -> StageData:
    """Return the samples that a data section describes.

    ``sums`` False leaves the checksums of tokens to another rank.

    Raises:
        UsageError: For what cannot be read or is too short.
        BadDataError: For what cannot be read or is too short.
    """
    tokenizer = _tokenizer(data)
    weights = weights_of([str(corpus.weight) for corpus in data.corpora])
    checksums = data.checksums if sums else "never"
    files = [open_corpus_files(each.path, tokenizer, checksums) for each in data.corpora]
    spans = [_split(each, data) for each in files]
    used = [
        corpus_of(each, tokenizer, data, span) for each, (span, _) in zip(files, spans, strict=True)
    ]
    sources = [
        SampleSource(f"data.corpora.{number}", each.name, corpus, corpus.per_epoch, section.anew)
        for number, (each, corpus, section) in enumerate(
            zip(files, used, data.corpora, strict=True)
        )
    ]
    keys = {**_keys(data, tokenizer), **_keys_of_corpora(data.corpora, files, used)}
    mixture = Mixture(sources, weights)
    notes: tuple[str, ...] = ()
    if data.teacher is not None:
        teacher = _teacher(data, data.teacher, tokenizer)
        keys |= {
            "data.teacher.files": teacher.summary,
            "data.teacher.share": data.teacher.share,
            "data.teacher.packed": data.teacher.packed,
        }
        notes = (f"data.teacher.files: {teacher.lost}",) if len(teacher.lost) else ()
        name = "data.teacher"
        first = SampleSource(name, name, teacher, teacher.rows, data.teacher.anew)
        mixture = Mixture([first, *sources], weights, Fraction(str(data.teacher.share)))
    sets = []
    if data.validation_share:
        held = [
            corpus_of(each, tokenizer, data, span)
            for each, (_, span) in zip(files, spans, strict=True)
        ]
        sets.append(set_of(HELD_OUT, held, weights))
    trained = [(each, span) for each, (span, _) in zip(files, spans, strict=True)]
    sets += open_sets(data, tokenizer, checksums, trained)
    return StageData(tokenizer, mixture, tuple(sets), keys, notes)


def _teacher(data: DataSection, section: TeacherSection, tokenizer: Tokenizer) -> Teacher:
    propositions = list(read_propositions(section.files))
    length, seed = data.sequence_length, data.seed
    return Teacher(propositions, tokenizer, length, seed, packed=section.packed)


def _keys(data: DataSection, tokenizer: Tokenizer) -> Keys:
    """Return what decides on samples beside the texts."""
    facts = TokenizerFacts.model_validate(tokenizer.identity)
    digest = f", digest {facts.sha256[:SHOWN]}" if facts.sha256 else ""
    return {
        "data.tokenizer": f"{facts.kind} of {facts.vocab_size:,} ids{digest}",
        "data.eod": facts.eod,
        "data.sequence_length": data.sequence_length,
        **({"data.document_attention": True} if data.document_attention else {}),
        "data.seed": data.seed,
        "data.validation_share": data.validation_share,
    }


def _keys_of_corpora(
    sections: Sequence[CorpusSection], files: Sequence[CorpusFiles], corpora: Sequence[Corpus]
) -> Keys:
    keys: dict[str, str | float] = {}
    for number, section in enumerate(sections):
        told = f"{files[number].name} ({corpora[number].summary})"
        keys[f"data.corpora.{number}.path"] = told
        keys[f"data.corpora.{number}.weight"] = section.weight
    return keys


def _tokenizer(data: DataSection) -> Tokenizer:
    """Return the tokenizer.

    Raises:
        UsageError: In the section's keys.
    """
    with in_words():
        return open_tokenizer(data.tokenizer, data.eod)


def _split(corpus: CorpusFiles, data: DataSection) -> tuple[range, range]:
    """Return which documents are trained on, and which are held out."""
    count = len(corpus.index.lengths)
    held = ceil(count * data.validation_share)
    if held >= count:
        raise UsageError(
            f"{count} documents, of which {held} would be held out",
            "make validation_share smaller, or prepare more documents",
            where=corpus.path,
        )
    used, rest = range(count - held), range(count - held, count)
    if held:
        for documents, purpose, change in (
            (rest, "validation", "larger"),
            (used, "training", "smaller"),
        ):
            tokens = corpus.tokens_in(documents)
            if samples_in(tokens, data.sequence_length) < 1:
                raise UsageError(
                    Text(
                        f"data.validation_share {data.validation_share:g} leaves ",
                        Found(f"{tokens:,}"),
                        f" of {corpus.tokens:,} tokens for {purpose} ({len(documents):,} of "
                        f"{count:,} documents)",
                    ),
                    f"make data.validation_share {change}, or prepare more documents",
                    where=corpus.path,
                    wanted=f"more than {data.sequence_length:,} for one sample",
                )
    return used, rest
