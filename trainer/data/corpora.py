"""A prepared corpus as training samples, by megatron-core's GPTDataset.

GPTDataset shuffles documents, cuts their tokens into samples and shuffles those. Asked for several
epochs it mixes them in a way that depends on how many samples are wanted in all, so here each epoch
is a dataset of its own with its own seed: sample n is the same for a run of any length
(:mod:`flmgrow.trainer.data.samples`). The tokens that fill no sample at an epoch's end, fewer than
a sample, are left out in that epoch; another shuffle leaves out others.

The indices of one epoch lie in the memory of every rank: 4 bytes per document, 12 per sample.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from flmgrow.errors import BadDataError
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.data.corpus_files import CorpusFiles, open_corpus_files, samples_in
from flmgrow.trainer.data.samples import SHOWN, Sample, seed_of
from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.megatron.core import GPTDataset, GPTDatasetConfig, IndexedDataset, Split
from flmgrow.trainer.stage.data import DataSection

logging.getLogger("megatron.core.datasets").setLevel(logging.ERROR)  # it warns of each epoch


class Corpus:
    """The samples of one corpus, endlessly, each of ``sequence_length`` tokens.

    ``corpus`` is one that ``flmgrow data prepare`` made, however it is named
    (:mod:`flmgrow.trainer.data.corpus_files`), or Megatron's prefix of a .bin and an .idx file.
    ``documents`` takes only some of its documents, for instance to hold others out. With
    ``document_attention`` each document in a sample is read as if it were alone (:func:`apart`);
    the samples are the same. ``per_epoch``
    is the number of samples before the corpus begins anew, ``summary`` what the whole of it is, in
    a few words.

    Raises:
        BadDataError: For files that do not fit together or hold less than a sample.
        UsageError: For another tokenizer's.
    """

    def __init__(
        self,
        corpus: Path | CorpusFiles,
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        documents: range | None = None,
        *,
        document_attention: bool = False,
    ) -> None:
        files = open_corpus_files(corpus, tokenizer) if isinstance(corpus, Path) else corpus
        self._prefix = files.prefix
        self._lengths = files.index.lengths
        self.name = files.name
        count = len(files.index.lengths)
        chosen = range(count) if documents is None else documents
        self.chosen_end = np.array(chosen, dtype=np.int32)
        self._length = sequence_length
        self._seed = seed
        self._apart = document_attention
        self._tokenizer = tokenizer
        self._stored = IndexedDataset(str(self._prefix))
        used = files.tokens_in(chosen)
        self.per_epoch = samples_in(used, sequence_length)
        if self.per_epoch < 1:
            raise BadDataError(
                Text(f"{files.prefix}.idx: ", Found(used), " tokens"),
                wanted=f"more than {sequence_length} for one sample",
            )
        self.identity: Json = {
            "tokens": files.tokens,
            "index": files.index_sum,
            "files": list(files.files),
            "tokenizer": tokenizer.identity,
            "sequence_length": sequence_length,
            "seed": seed,
            "documents": [chosen.start, chosen.stop, chosen.step],
            **({"document_attention": True} if document_attention else {}),
        }
        self.earlier: Json = {
            **self.identity,
            "tokenizer": tokenizer.earlier,
            "files": list(files.files) if files.path.is_dir() else [],
        }
        self.summary = (
            f"{files.tokens:,} tokens in {count:,} documents, checksum {files.index_sum[:SHOWN]}"
        )
        self._epoch = lru_cache(maxsize=2)(self._shuffled)  # two: a batch may span an epoch's end

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``, counted from 0 over all epochs."""
        epoch, place = divmod(index, self.per_epoch)
        found = self._epoch(epoch)[place]
        sample = Sample(
            found["tokens"].numpy(),
            found["labels"].numpy(),
            found["loss_mask"].numpy(),
            found["position_ids"].numpy(),
        )
        if not self._apart:
            return sample
        spans = self.spans(index)
        document, _, stop = spans[-1]
        sizes = [end - begin for _, begin, end in spans]
        return apart(sample, sizes, ends=stop == int(self._lengths[document]))

    def spans(self, index: int) -> list[tuple[int, int, int]]:
        """Return of which documents sample ``index`` consists: each one's number, and its tokens
        from where to where; the token behind the last one, which is a label only, is not among
        them.
        """
        epoch, place = divmod(index, self.per_epoch)
        made = self._epoch(epoch)
        row = int(made.shuffle_index[place])
        (first, begin), (last, end) = (map(int, made.sample_index[row + n]) for n in (0, 1))
        found = []
        for position in range(first, last + 1):
            document = int(made.document_index[position])
            start = begin if position == first else 0
            stop = end if position == last else int(self._lengths[document])
            if stop > start:
                found.append((document, start, stop))
        return found

    def _shuffled(self, epoch: int) -> GPTDataset:
        # Without a blend, megatron-core keeps the indices in memory: no files beside the corpus, no
        # rank that waits for another, nothing half-written after a kill.
        config = GPTDatasetConfig(
            random_seed=seed_of(self._seed, epoch),
            sequence_length=self._length,
            tokenizer=self._tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        return GPTDataset(
            self._stored, str(self._prefix), self.chosen_end, None, Split.train, config
        )


def corpus_of(
    files: CorpusFiles, tokenizer: Tokenizer, data: DataSection, documents: range
) -> Corpus:
    """Return some documents of a corpus as samples, as a data section wants them.

    Raises:
        BadDataError: For less than a sample.
    """
    return Corpus(
        files,
        tokenizer,
        data.sequence_length,
        data.seed,
        documents,
        document_attention=data.document_attention,
    )


def apart(sample: Sample, sizes: Sequence[int], *, ends: bool) -> Sample:
    """Return ``sample`` with each of its documents, of so many tokens, to be read as if alone.

    Positions restart where a document begins, so that attention stops there
    (:func:`flmgrow.trainer.data.samples.attention_mask`). A document's last token has the next
    one's first token as its label, which nobody can know: it does not count. ``ends`` says whether
    the last document does, with the label behind the sample another's too.
    """
    positions = np.concatenate([np.arange(size) for size in sizes])
    behind = np.cumsum(sizes) - 1
    counts = sample.loss_mask.copy()  # megatron-core shares one among its samples
    counts[behind if ends else behind[:-1]] = 0
    return replace(sample, loss_mask=counts, positions=positions)
