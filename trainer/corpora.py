"""A prepared corpus becomes training samples, epoch after epoch, by megatron-core's GPTDataset.

GPTDataset shuffles documents, cuts their tokens into samples and shuffles those. Asked for several
epochs it mixes them in a way that depends on how many samples are wanted in all, so here each epoch
is a dataset of its own with its own seed: sample n is the same for a run of any length
(:mod:`flmgrow.trainer.data`). The tokens that fill no sample at an epoch's end, fewer than a
sample, are left out in that epoch; another shuffle leaves out others.

The indices of one epoch lie in the memory of every rank: 4 bytes per document, 12 per sample.
"""

import json
import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer import cpu
from flmgrow.trainer.data import SHOWN, Json, Sample, seed_of
from flmgrow.trainer.data_prepare import MANIFEST, PREFIX
from flmgrow.trainer.indexed import read_index
from flmgrow.trainer.tokenizers import Tokenizer

cpu.install()

from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDataset  # noqa: E402
from megatron.core.datasets.utils import Split  # noqa: E402

logging.getLogger("megatron.core.datasets").setLevel(logging.ERROR)  # it warns of each epoch


class Corpus:
    """The samples of one corpus, endlessly, each of ``sequence_length`` tokens.

    ``path`` is what ``flmgrow data prepare`` made, or Megatron's prefix of a .bin and an .idx file.
    ``documents`` takes only some of its documents, for instance to hold others out.
    ``per_epoch`` is the number of samples before the corpus begins anew, ``summary`` what the whole
    of it is, in a few words. Raises BadDataError for
    files that do not fit together or hold less than a sample, UsageError for another tokenizer's.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        documents: range | None = None,
    ) -> None:
        self._prefix = path / PREFIX if path.is_dir() else path
        index_file = self._prefix.with_name(self._prefix.name + ".idx")
        index = read_index(index_file)
        chosen = range(len(index.lengths)) if documents is None else documents
        tokens = int(index.lengths.sum(dtype=np.int64))
        _check_size(self._prefix, tokens * index.dtype.itemsize)
        wanted = _check_tokenizer(path, tokenizer)
        self._chosen = np.array(chosen, dtype=np.int32)
        self._length = sequence_length
        self._seed = seed
        self._tokenizer = tokenizer
        self._stored = IndexedDataset(str(self._prefix))
        used = int(index.lengths[self._chosen].sum(dtype=np.int64))
        self.per_epoch = (used - 1) // sequence_length
        if self.per_epoch < 1:
            raise BadDataError(
                f"{index_file}: {used} tokens, wanted more than {sequence_length} for one sample"
            )
        self.identity: Json = {
            "tokens": tokens,
            "index": xxhash.xxh3_128_hexdigest(index_file.read_bytes()),
            "files": wanted,
            "tokenizer": tokenizer.identity,
            "sequence_length": sequence_length,
            "seed": seed,
            "documents": [chosen.start, chosen.stop, chosen.step],
        }
        self.earlier: Json = {**self.identity, "tokenizer": tokenizer.earlier}
        self.summary = (
            f"{tokens:,} tokens in {len(index.lengths):,} documents, "
            f"checksum {self.identity['index'][:SHOWN]}"
        )
        self._epoch = lru_cache(maxsize=2)(self._shuffled)  # two: a batch may span an epoch's end

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``, counted from 0 over all epochs."""
        epoch, place = divmod(index, self.per_epoch)
        found = self._epoch(epoch)[place]
        return Sample(
            found["tokens"].numpy(),
            found["labels"].numpy(),
            found["loss_mask"].numpy(),
            found["position_ids"].numpy(),
        )

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
        return GPTDataset(self._stored, str(self._prefix), self._chosen, None, Split.train, config)


def _check_size(prefix: Path, wanted: int) -> None:
    file = prefix.with_name(prefix.name + ".bin")
    found = file.stat().st_size if file.is_file() else 0
    if found != wanted:
        raise BadDataError(f"{file}: {found} bytes, its index says {wanted}")


def _check_tokenizer(path: Path, tokenizer: Tokenizer) -> list[Json]:
    """Return the checksums that a prepared corpus has of its files; none for Megatron's own."""
    file = path / MANIFEST
    if not file.is_file():
        return []
    try:
        manifest = json.loads(file.read_bytes())
        made_with, files = manifest["tokenizer"], list(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadDataError(f"{file}: not a manifest of data: {error}") from None
    if made_with not in (tokenizer.identity, tokenizer.earlier):
        raise UsageError(
            f"{path}: made with the tokenizer {json.dumps(made_with)}, "
            f"this is {json.dumps(tokenizer.identity)}",
            "say data.tokenizer and data.eod as data prepare was told",
        )
    return files
