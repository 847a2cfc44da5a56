"""What megatron-core makes of corpora, in a process of its own.

The tests are in ``trainer/test_data_megatron.py``; this is a script, given the corpora's folder.
"""

import hashlib
import json
import os
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmgrow.errors import FlmgrowError
from flmgrow.formats.history.training_state import Carried
from flmgrow.model.config import ModelConfig
from flmgrow.trainer.data.batches import Batches, Batching, stacked
from flmgrow.trainer.data.blends import Blend
from flmgrow.trainer.data.course import course_of
from flmgrow.trainer.data.freelm import Proposition, Teacher
from flmgrow.trainer.data.samples import attention_mask, is_packed
from flmgrow.trainer.data.tokenizers import ByteTokenizer, open_tokenizer
from flmgrow.trainer.megatron import cpu

cpu.install()

from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402
from megatron.core.datasets.indexed_dataset import (  # noqa: E402
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
)
from megatron.core.datasets.utils import Split  # noqa: E402

from flmgrow.trainer.data.corpora import Corpus  # noqa: E402
from flmgrow.trainer.data.stage_data import StageData, open_data  # noqa: E402
from flmgrow.trainer.stage.data import DataSection  # noqa: E402

LENGTH = 16
WEIGHTS = (Fraction(107, 200), Fraction(93, 200))


def built(folder: Path, name: str) -> dict[str, Any]:
    """Read a corpus, and build it again with megatron-core."""
    dataset = IndexedDataset(str(folder / name / "data"))
    documents = [dataset[i].tolist() for i in range(len(dataset))]
    again = folder / f"{name}-again"
    builder = IndexedDatasetBuilder(f"{again}.bin", dtype=dataset.index.dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{again}.idx")
    sums = {
        ending: hashlib.sha256(Path(f"{again}.{ending}").read_bytes()).hexdigest()
        for ending in ("bin", "idx")
    }
    return {"documents": documents, "built": sums, "dtype": dataset.index.dtype.__name__}


def rows(corpus: Any, indices: range) -> list[list[int]]:
    """Return whole samples: the tokens, and the label of the last."""
    samples = [corpus[index] for index in indices]
    for sample in samples:
        assert (sample.tokens[1:] == sample.labels[:-1]).all()
        assert (sample.loss_mask == 1).all()
        assert (sample.positions == np.arange(LENGTH)).all()
    return [[*sample.tokens.tolist(), int(sample.labels[-1])] for sample in samples]


def epochs(folder: Path) -> dict[str, Any]:
    """Return the samples of three epochs, of two seeds, and of half of the documents."""
    path = folder / "bytes"
    corpora = [Corpus(path, ByteTokenizer(), LENGTH, seed) for seed in (5, 5, 6)]
    size = corpora[0].per_epoch
    held = Corpus(path, ByteTokenizer(), LENGTH, 5, range(25))
    return {
        "epochs": [rows(corpora[0], range(e * size, (e + 1) * size)) for e in range(3)],
        "again": rows(corpora[1], range(size, 2 * size)),  # without having seen the first
        "other seed": rows(corpora[2], range(size)),
        "held": rows(held, range(held.per_epoch)),
    }


def parted(folder: Path) -> list[dict[str, Any]]:
    """Return an epoch and a bit of samples whose documents are apart, beside those that are not."""
    path = folder / "bytes"
    plain = Corpus(path, ByteTokenizer(), LENGTH, 5)
    apart = Corpus(path, ByteTokenizer(), LENGTH, 5, document_attention=True)
    assert "document_attention" not in plain.identity
    assert apart.identity == {**plain.identity, "document_attention": True}
    found = []
    for index in range(plain.per_epoch + 3):
        one, other = plain[index], apart[index]
        found.append(
            {
                "same": bool(
                    (one.tokens == other.tokens).all() & (one.labels == other.labels).all()
                ),
                "whole": bool((one.loss_mask == 1).all()),
                "row": [*other.tokens.tolist(), int(other.labels[-1])],
                "counts": other.loss_mask.tolist(),
                "positions": other.positions.tolist(),
                "taught": other.taught,
            }
        )
    return found


def orders_of_megatron(folder: Path) -> list[list[list[int]]]:
    """Return the first epoch as one GPTDataset gives it, asked for ever more samples."""
    stored = IndexedDataset(str(folder / "bytes" / "data"))
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=LENGTH,
        tokenizer=ByteTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    documents = np.arange(len(stored), dtype=np.int32)
    one_epoch = len(GPTDataset(stored, "", documents, None, Split.train, config))
    datasets = [
        GPTDataset(stored, "", documents, samples * one_epoch, Split.train, config)
        for samples in (2, 3)
    ]
    return [[dataset[i]["tokens"].tolist() for i in range(one_epoch)] for dataset in datasets]


def stages(folder: Path) -> dict[str, Any]:
    """Return what a run of three stages saw, and what one that knows no stages sees."""

    def blend() -> Blend:
        return Blend(
            [
                Corpus(folder / "bytes", ByteTokenizer(), LENGTH, 5),
                Corpus(folder / "more", ByteTokenizer(), LENGTH, 5),
            ],
            WEIGHTS,
        )

    seen: list[list[list[int]]] = []
    consumed = 0
    for batch, micro_batch, replicas, steps in (
        (8, 2, 2, 7),
        (8, 2, 2, 3),
        (12, 2, 3, 9),
        (6, 6, 1, 20),
    ):
        runs = [
            Batches(blend(), Batching(batch, micro_batch, replicas, replica), consumed)
            for replica in range(replicas)
        ]
        iterators = [iter(run) for run in runs]
        for _ in range(steps):
            parts = [next(iterator) for iterator in iterators]
            seen.append(sorted(row.tolist() for part in parts for m in part for row in m["tokens"]))
        consumed = runs[0].consumed
    whole = blend()
    sizes = [8] * 10 + [12] * 9 + [6] * 20
    starts = np.cumsum([0, *sizes]).tolist()
    wanted = [
        sorted(whole[index].tokens.tolist() for index in range(start, start + size))
        for start, size in zip(starts[:-1], sizes, strict=True)
    ]
    return {
        "seen": seen,
        "wanted": wanted,
        "consumed": consumed,
        "windows": Corpus(folder / "more", ByteTokenizer(), LENGTH, 5).per_epoch,
    }


def refusals(folder: Path) -> dict[str, str]:
    """Return what is said of corpora that cannot be."""

    def damaged(name: str, file: str, content: bytes) -> Path:
        copy = folder / name
        copy.mkdir()
        for path in (folder / "bytes").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        (copy / file).write_bytes(content)
        return copy

    cases: dict[str, tuple[Path, Any, int]] = {
        "missing": (folder / "nothing", ByteTokenizer(), LENGTH),
        "tokenizer": (folder / "bytes", open_tokenizer("bytes", "0"), LENGTH),
        "short": (folder / "bytes", ByteTokenizer(), 10**6),
        "cut": (damaged("cut", "data.bin", b"12"), ByteTokenizer(), LENGTH),
        "index": (damaged("index", "data.idx", b"12"), ByteTokenizer(), LENGTH),
        "manifest": (damaged("manifest", "flmgrow-data.json", b"[]"), ByteTokenizer(), LENGTH),
    }
    said = {}
    for name, (path, tokenizer, length) in cases.items():
        try:
            Corpus(path, tokenizer, length, 1)
        except FlmgrowError as error:
            said[name] = error.message
    for share in (0.02, 0.97):
        try:
            section(folder, sequence_length=900, validation_share=share)
        except FlmgrowError as error:
            said[f"share {share}"] = f"{error.message} | {error.hint}"
    return said


def section(folder: Path, **changes: Any) -> StageData:
    """Open the data section of a stage: two corpora and a teacher, and ``changes``."""
    corpora = [{"path": folder / "bytes", "weight": 3}, {"path": folder / "more"}]
    return open_data(
        DataSection.model_validate({"sequence_length": LENGTH, "corpora": corpora, **changes})
    )


def reading(folder: Path) -> dict[str, Any]:
    """Return what is told of how a stage reads its data, and of data that differ."""
    facts = {"files": [folder / "facts.jsonl"], "share": 0.25}
    data = section(folder, validation_share=0.1, teacher=facts)
    course = course_of(data.mixture, data.keys, LENGTH, Carried())
    carried = Carried(
        consumed_samples=8,
        data=course.digest,
        data_keys=dict(data.keys),
        readings=course.readings(8),
    )
    reordered = [{"path": folder / "more"}, {"path": folder / "bytes", "weight": 3}]
    others: dict[str, dict[str, Any]] = {
        "share": {"validation_share": 0},
        "seed": {"seed": 5},
        "documents": {"document_attention": True},
        "weight": {"corpora": [{"path": folder / "bytes"}, {"path": folder / "more"}]},
        "corpora": {"corpora": reordered},
        "one less": {"corpora": reordered[1:]},
        "teacher": {"teacher": {**facts, "share": 0.5, "packed": False}},
        "no teacher": {"teacher": None},
    }
    said = {}
    for name, changes in others.items():
        try:
            same = {"validation_share": 0.1, "teacher": facts}
            changed = section(folder, **{**same, **changes})
            course_of(changed.mixture, changed.keys, LENGTH, carried)
        except FlmgrowError as error:
            said[name] = error.message.partition(" samples of other data: ")[2]
    count = [source.per_epoch for source in data.mixture.sources]
    return {
        "epochs": list(course.epochs(400)),
        "per epoch": count,
        "held out": data.validation[0].once if data.validation else 0,
        "changes": said,
    }


def attention() -> dict[str, float]:
    """Return how far logits in a packed row are from those of a proposition alone, in float64."""
    from flmgrow.trainer.megatron import model

    config = ModelConfig(
        layers=2,
        hidden=32,
        ffn=48,
        kv_groups=2,
        queries_per_group=2,
        head_dim=8,
        vocab=257,
        max_positions=64,
    )
    (gpt,) = model.build_model_chunks(config, model.transformer_config(config, tp=1, pp=1), 384)
    gpt = gpt.eval()
    propositions = [Proposition(text, True, "") for text in ("one", "two!", "three")]
    packed = Teacher(propositions, ByteTokenizer(), 40, 0)[0]
    batch = {name: torch.from_numpy(array) for name, array in stacked([packed]).items()}
    mask = torch.from_numpy(attention_mask(packed.positions[None]))
    with torch.no_grad():
        masked = gpt(batch["tokens"], batch["positions"], mask)[0]
        crossing = gpt(batch["tokens"], batch["positions"], None)[0]
        starts = [*np.flatnonzero(packed.positions == 0).tolist(), 40]
        differences, control = [], []
        for begin, end in list(pairwise(starts))[:3]:
            alone = batch["tokens"][:, begin:end]
            logits = gpt(alone, torch.arange(end - begin)[None], None)[0]
            differences.append(float((logits - masked[begin:end]).abs().max()))
            control.append(float((logits - crossing[begin:end]).abs().max()))
    return {"masked": max(differences), "crossing": max(control)}


POSITIONS: dict[str, dict[str, Any]] = {
    "rope": {"positions": "rope"},
    "xpos": {"positions": "xpos"},
    "learned": {"positions": "learned"},
}


def losses_of_documents(folder: Path) -> dict[str, dict[str, float]]:
    """Return, in float64, how far losses of a sample's tokens are from those of documents alone.

    ``restarted`` has the mask and the positions of a sample, ``crossing`` neither. ``gradient`` is
    how far that of the sum of what counts is from the sum of all documents' own, of its largest.
    """
    from flmgrow.trainer.megatron import model

    corpus = Corpus(folder / "more", ByteTokenizer(), 64, 5, document_attention=True)
    assert sum(is_packed(corpus[n].positions[None]) for n in range(4)) == 4
    batch = {
        name: torch.from_numpy(array)
        for name, array in stacked([corpus[n] for n in range(4)]).items()
    }
    report = {}
    for name, positions in POSITIONS.items():
        config = ModelConfig(
            layers=2, hidden=32, ffn=48, kv_groups=2, queries_per_group=2, head_dim=8, vocab=257,
            max_positions=64, **positions,
        )  # fmt: skip
        settings = model.transformer_config(config, tp=1, pp=1, dtype=torch.float64)
        (gpt,) = model.build_model_chunks(config, settings, 384)
        gpt = gpt.eval()
        given = (batch["tokens"], batch["positions"], attention_mask(batch["positions"]))
        restarted = gpt(*given, labels=batch["labels"]).double()
        order = torch.arange(64).expand(4, -1)
        crossing = gpt(batch["tokens"], order, None, labels=batch["labels"]).double()
        alone, total = torch.zeros_like(restarted), torch.zeros((), dtype=torch.float64)
        for row in range(4):
            starts = [*torch.nonzero(batch["positions"][row] == 0).flatten().tolist(), 64]
            for begin, end in pairwise(starts):
                part = {key: batch[key][row : row + 1, begin:end] for key in ("tokens", "labels")}
                place = torch.arange(end - begin)[None]
                losses = gpt(part["tokens"], place, None, labels=part["labels"])[0].double()
                alone[row, begin:end] = losses.detach()
                ends = end < 64 or not batch["loss_mask"][row, -1]
                total = total + losses[: -1 if ends else None].sum()
        parameters = [each for each in gpt.parameters() if each.requires_grad]
        counted = (restarted * batch["loss_mask"]).sum()
        ours, wanted = (torch.autograd.grad(each, parameters) for each in (counted, total))
        largest = max(float(each.abs().max()) for each in wanted)
        pairs = zip(ours, wanted, strict=True)
        report[name] = {
            "restarted": float((restarted - alone).abs().max()),
            "crossing": float((crossing - alone).abs().max()),
            "gradient": max(float((a - b).abs().max()) for a, b in pairs) / largest,
        }
    return report


def models(folder: Path) -> dict[str, Any]:
    """Return what models make of rows of several texts."""
    from flmgrow.trainer.megatron import model

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    model.start_parallel(tp=1, pp=1)
    found = {"attention": attention(), "losses of documents": losses_of_documents(folder)}
    model.stop_parallel()
    return found


def main(folder: Path) -> dict[str, Any]:
    """Return all that the tests ask for."""
    sizes = (257, 65_499, 65_500, 100_256)
    return {
        "optimal": {str(size): DType.optimal_dtype(size).__name__ for size in sizes},
        **{name: built(folder, name) for name in ("bytes", "ranks", "wide")},
        "epochs": epochs(folder),
        "orders": orders_of_megatron(folder),
        "stages": stages(folder),
        "refusals": refusals(folder),
        **models(folder),
        "parted": parted(folder),
        "reading": reading(folder),
        "left": sorted(path.name for path in (folder / "bytes").iterdir()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
