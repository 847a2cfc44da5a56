"""Samples of a corpus and of a step as text, with the documents that each consists of.

Their order is megatron-core's, which has to be imported for it.
"""

from collections.abc import Iterator
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.data.corpora import Corpus
from flmgrow.trainer.data.course import Course
from flmgrow.trainer.data.looking import DocumentSpan, ShownTokens
from flmgrow.trainer.data.samples import Samples
from flmgrow.trainer.data.tokenizer import Tokenizer


def shown_sample(corpus: Samples, name: str, index: int, tokenizer: Tokenizer) -> ShownTokens:
    """Return sample ``index`` of a corpus, counted over all epochs."""
    tokens = corpus[index].tokens
    spans = corpus.spans(index) if isinstance(corpus, Corpus) else ()
    found = tuple(DocumentSpan(*span) for span in spans)
    return ShownTokens(name, index, found, len(tokens), tokenizer.decode(tokens.tolist()))


def shown_step(course: Course, first: int, batch: int, tokenizer: Tokenizer) -> Iterator[Json]:
    """Yield the samples of a step that reads ``batch`` of them, from the run's ``first`` on.

    Each is what :class:`ShownTokens` holds, and ``number``, the run's own of it.
    """
    for number in range(first, first + batch):
        before, after = course.places(number), course.places(number + 1)
        pairs = zip(course.mixture.sources, before, after, strict=True)
        source, place = next((s, a) for s, a, b in pairs if b > a)
        shown = shown_sample(source.samples, source.name, place, tokenizer)
        yield {"number": number, "header": shown.header, **shown.to_json()}


def sample_of(
    path: Path, tokenizer: Tokenizer, index: int, sequence_length: int, seed: int
) -> ShownTokens:
    """Return sample ``index`` of a corpus that is read alone, whole, and with this seed.

    Raises:
        BadDataError: For files that do not fit together.
        UsageError: For another tokenizer's, or a number below 0.
    """
    if index < 0:
        raise UsageError(Text("sample ", Found(index)), wanted="a number from 0 on")
    corpus = Corpus(path, tokenizer, sequence_length, seed)
    return shown_sample(corpus, corpus.name, index, tokenizer)
