"""What lies in a corpus, and what a step of a stage reads: documents and samples as text.

Somebody who sees a loss jump at step 8,412 wants to read what was read there. Samples are cut
across documents and shuffled, so each is told with the documents that it consists of and the tokens
of them, and text that the tokenizer gives back.
"""

from dataclasses import dataclass

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.data.corpus_files import CorpusFiles, samples_in
from flmgrow.trainer.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens ``begin`` up to ``end`` of a document, whose number counts from 0."""

    document: int
    begin: int
    end: int

    def to_json(self) -> Json:
        """Return it as data."""
        return {"document": self.document, "begin": self.begin, "end": self.end}


@dataclass(frozen=True)
class ShownTokens:
    """Tokens as text, with where they come from.

    ``sample`` is its number in the corpus' order, or None for a document. What is no corpus, such
    as a teacher's propositions, has no ``spans``.
    """

    corpus: str
    sample: int | None
    spans: tuple[DocumentSpan, ...]
    tokens: int
    text: str

    def to_json(self) -> Json:
        """Return it as data."""
        return {
            "corpus": self.corpus,
            "sample": self.sample,
            "documents": [span.to_json() for span in self.spans],
            "tokens": self.tokens,
            "text": self.text,
        }

    @property
    def header(self) -> str:
        """Where it comes from, in a line."""
        what = [self.corpus] if self.sample is None else [f"{self.corpus}, sample {self.sample:,}"]
        what += [f"document {s.document:,} [{s.begin:,}:{s.end:,}]" for s in self.spans]
        return "; ".join([*what, f"{self.tokens:,} tokens"])


def shown_document(files: CorpusFiles, tokenizer: Tokenizer, number: int) -> ShownTokens:
    """Return document ``number`` of a corpus.

    Raises:
        UsageError: If there is no such document.
    """
    lengths = files.index.lengths
    if not 0 <= number < len(lengths):
        raise UsageError(
            Text("document ", Found(f"{number:,}")), where=files.path, wanted=_below(len(lengths))
        )
    begin = int(lengths[:number].sum(dtype=np.int64))
    length = int(lengths[number])
    stored = np.memmap(files.tokens_file, files.index.dtype, "r")
    text = tokenizer.decode(stored[begin : begin + length].tolist()) if length else ""
    return ShownTokens(files.name, None, (DocumentSpan(number, 0, length),), length, text)


def statistics_of(files: CorpusFiles, sequence_length: int | None = None) -> Json:
    """Return counts of a corpus: documents, tokens, and how long documents are, in tokens.

    With a ``sequence_length`` also how many samples an epoch has, and how many documents are longer
    than one.
    """
    lengths = files.index.lengths
    quantiles = np.quantile(lengths, (0.1, 0.5, 0.9)).tolist() if len(lengths) else [0, 0, 0]
    found: Json = {
        "documents": len(lengths),
        "tokens": files.tokens,
        "bytes_per_token": files.index.dtype.itemsize,
        "empty_documents": int((lengths == 0).sum()),
        "shortest": int(lengths.min()) if len(lengths) else 0,
        "tenth": quantiles[0],
        "median": quantiles[1],
        "ninetieth": quantiles[2],
        "longest": int(lengths.max(initial=0)),
        "mean": files.tokens / max(1, len(lengths)),
    }
    if sequence_length is not None:
        found["samples_per_epoch"] = samples_in(files.tokens, sequence_length)
        found["longer_than_a_sample"] = int((lengths > sequence_length).sum())
    return found


def _below(count: int) -> str:
    return f"0 to {count - 1:,}" if count else "none: the corpus has no documents"
