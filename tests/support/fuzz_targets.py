"""The parsers that read what others wrote, each with a place where a mutated file lies.

A target makes its surroundings once, in a folder of its own; then its file holds one content after
the other, and is opened as a command would open it.
"""

import contextlib
import io
import json
import shutil
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import dcp_folders
import numpy as np
import torch
from damage import read_records, replace_record
from growing import grow_checkpoint
from hf_folders import CONFIG, FLM, GPT2, NEOX, fields, make_folder
from pico import CONFIGS, arguments, even, make_checkpoint
from pico_dist import make_dist_checkpoint
from repository import ROOT
from tiny_tokenizers import make_ranks

from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.formats.history.manifest import read_manifest, sealed
from flmgrow.formats.history.training_state import TrainingState, read_training_state
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.safetensors_file import SafetensorsFile
from flmgrow.formats.megatron.arguments.model import read_config
from flmgrow.formats.megatron.folders import iteration_folder
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.tokenizer.identity import digest_of_tokenizer
from flmgrow.formats.tokenizer.spoken import byte_tokenizer
from flmgrow.formats.tokenizer.tiktoken_ranks import read_ranks
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.operators.target import Target
from flmgrow.stages.schedule import read_schedule
from flmgrow.storage.journal import Journal
from flmgrow.storage.strict_json import parse_object
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.surgery.target_file import parse_target
from flmgrow.trainer.data.indexed import index_bytes, read_index
from flmgrow.trainer.stage.file import read_stage

Opener = Callable[[Path], object]
MODEL = CONFIGS["llama"]
RANK = "iter_0000030/mp_rank_00/model_optim_rng.pt"
DIST = "dist/iter_0000030"
_TENSORS = 64


def as_it_is(data: bytes) -> bytes:
    """The file is its mutated content."""
    return data


@dataclass(frozen=True)
class Parser:
    """One kind of file: ``path`` in the target's folder, and what ``reads`` that folder.

    ``make`` fills an empty folder and returns valid contents of the file. ``wrap`` makes a file of
    mutated content, so that an outer layer (an archive with right sums) lets it through.
    """

    path: str
    make: Callable[[Path], Sequence[bytes]]
    reads: Opener
    wrap: Callable[[bytes], bytes] = as_it_is


@dataclass
class Place:
    """A parser in its folder."""

    parser: Parser
    folder: Path
    seeds: Sequence[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.seeds = tuple(self.parser.make(self.folder))

    def put(self, data: bytes) -> None:
        """Let the file hold ``data``."""
        path = self.folder / self.parser.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.parser.wrap(data))

    def read(self) -> object:
        """Read the folder as a command would."""
        return self.parser.reads(self.folder)


# --- torch's files


def _read_torch_file(folder: Path) -> None:
    with TorchFile(folder / "model.pt") as file:
        for _, record in islice(walk_tensors(file.root), _TENSORS):
            file.read(record.storage, 0, min(16, record.storage.nbytes))
        file.verify()


def _archives(folder: Path) -> list[bytes]:
    make_checkpoint(folder / "made", "llama", dtype="float32", optimizer=True)
    (rank,) = (folder / "made").rglob("*.pt")
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T, "n": [1, "a", None]}, folder / "small.pt")
    seeds = [(folder / "small.pt").read_bytes(), rank.read_bytes()]
    shutil.rmtree(folder / "made")
    return seeds


_SAVED: Mapping[str, object] = {
    "args": Namespace(hidden_size=16, name="a", lr=1e-3, layers=[1, 2], dtype=torch.bfloat16),
    "model": OrderedDict(w=torch.arange(6.0).reshape(2, 3).T, b=torch.arange(4)),
    "more": (b"bytes", {1, 2}, frozenset("ab"), None, True, 1 << 70, torch.Size([2, 3])),
}


def _pickles(folder: Path) -> list[bytes]:
    torch.save(_SAVED, folder / "made.pt")
    return [data for name, data in read_records(folder / "made.pt") if name.endswith("data.pkl")]


def _in_archive(data: bytes) -> bytes:
    """An archive whose sums are right, with a pickle and the two storages it is to refer to."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(24))
        archive.writestr("archive/data/1", bytes(32))
        archive.writestr("archive/version", b"3\n")
    return output.getvalue()


def _rank_pickles(folder: Path) -> list[bytes]:
    """The pickle in a rank's file of a checkpoint, which stays."""
    make_checkpoint(folder, "llama", dtype="float32")
    return [data for name, data in read_records(folder / RANK) if name.endswith("data.pkl")]


def _open_rank(folder: Path) -> None:
    """Put the mutated pickle into the rank's file, with right sums; then open the checkpoint."""
    data = (folder / "pickle").read_bytes()
    replace_record(folder / RANK, "data.pkl", lambda _: data)
    _open(folder)


def _metadata(folder: Path) -> list[bytes]:
    state = {"w": torch.arange(12.0).reshape(3, 4), "step": 3, "names": ["a", "b"]}
    dcp_folders.save(folder, state, {"w": dcp_folders.grid((3, 4), (1, 2))})
    return [(folder / ".metadata").read_bytes()]


# --- Hugging Face's


def _weights(folder: Path) -> list[bytes]:
    return [(make_folder(folder / "hf") / "model.safetensors").read_bytes()]


def _read_safetensors(folder: Path) -> None:
    file = SafetensorsFile(folder / "x.safetensors")
    try:
        for tensor in file.tensors.values():
            file.read_into(tensor, 0, memoryview(bytearray(min(16, tensor.nbytes))))
    finally:
        file.file.close()


def _open(folder: Path) -> None:
    with open_checkpoint(folder):
        pass


def _index(folder: Path) -> list[bytes]:
    made = make_folder(folder / "made", shards=2)
    for path in made.iterdir():
        path.rename(folder / path.name)
    return [(folder / "model.safetensors.index.json").read_bytes()]


def _configurations(folder: Path) -> list[bytes]:
    for path in make_folder(folder / "made").iterdir():
        path.rename(folder / path.name)
    scaled = fields(rope_scaling={"rope_type": "linear", "factor": 2.0}, eos_token_id=[1, 2])
    return [json.dumps(each).encode() for each in (CONFIG, scaled)]


def _families(_: Path) -> list[bytes]:
    return [json.dumps(each).encode() for each in (CONFIG, GPT2, NEOX, FLM)]


def _read_family(folder: Path) -> None:
    where = str(folder / "config.json")
    given = parse_object((folder / "config.json").read_bytes(), where)
    read_fields(family_of(given, where), given, where)


# --- Megatron's


def _dist(folder: Path) -> Path:
    """Make a distributed checkpoint, and return its iteration's folder."""
    shutil.move(make_dist_checkpoint(folder / "made", "llama"), folder / "dist")
    shutil.rmtree(folder / "made")
    return folder / DIST


def _integrity(folder: Path) -> list[bytes]:
    names = sorted(path.name for path in _dist(folder).iterdir() if path.is_file())
    sums = dict.fromkeys(names, "0" * 64)
    return [json.dumps({"algorithm": "sha256", "files": sums}).encode()]


def _dist_metadata(folder: Path) -> list[bytes]:
    return [(_dist(folder) / ".metadata").read_bytes()]


def _common(folder: Path) -> list[bytes]:
    return [(_dist(folder) / "common.pt").read_bytes()]


def _open_dist(folder: Path) -> None:
    _open(folder / "dist")


def _trackers(folder: Path) -> list[bytes]:
    for iteration in (3, 30):
        (folder / f"iter_{iteration:07d}" / "mp_rank_00").mkdir(parents=True)
    return [b"30\n", b"3", b"30"]


def _arguments(_: Path) -> list[bytes]:
    given = [vars(arguments(config, even(config))) for config in CONFIGS.values()]
    return [json.dumps(each, default=str).encode() for each in given]


def _read_arguments(folder: Path) -> None:
    try:
        given = json.loads((folder / "args.json").read_bytes())
    except (ValueError, RecursionError):
        return  # JSON stands for the pickle here, which has a parser of its own
    if isinstance(given, dict):
        read_config(given, "args.json", 128)


# --- flmgrow's own


def _manifests(folder: Path) -> list[bytes]:
    source = make_checkpoint(folder / "source", "llama", dtype="float32")
    target = Target(hidden=MODEL.hidden * 2, layers=MODEL.layers + 1)
    grow_checkpoint(source, folder / "grown", target)
    data = (folder / "grown" / "flmgrow.json").read_bytes()
    shutil.rmtree(folder / "source")
    shutil.rmtree(folder / "grown")
    return [data]


def _resealed(data: bytes) -> bytes:
    """A manifest whose sums are right, if it can have any."""
    try:
        content = json.loads(data)
        return sealed(content) if isinstance(content, dict) else data
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return data


def _states(_: Path) -> list[bytes]:
    state = TrainingState(iteration=3, stage="small", stage_begin=0)
    return [state.encode()]


def _journals(folder: Path) -> list[bytes]:
    journal = Journal(folder / "made")
    journal.append({"path": "iter_0000001/x.pt", "size": 12, "xxh3_128": "0" * 32})
    journal.append({"identity": "x", "files": []})
    journal.close()
    return [(folder / "made").read_bytes()]


def _read_journal(folder: Path) -> None:
    Journal(folder / "journal").close()


def _targets(_: Path) -> list[bytes]:
    wide = b"hidden_size: 64\nmethod: {width: copy, ffn: zero}\ntp: 2\ncopy_noise: 0.01\n"
    return [wide, b"num_layers: 8\npipeline_layers: [3, 5]\npp: 2\nuntie: true\n"]


def _read_target(folder: Path) -> None:
    wanted = parse_target(read_yaml(folder / "target.yaml"), "target.yaml")
    wanted.target()
    wanted.layout()


def _stages(_: Path) -> list[bytes]:
    return [
        b"model: {num_layers: 2, hidden_size: 32, num_attention_heads: 2, vocab_size: 257}\n"
        b"data: {tokenizer: bytes, sequence_length: 32, corpora: [{path: en}]}\n"
        b"training: {batch: 8, micro_batch: 8, tokens: 1.5K}\n"
        b"learning_rate: {peak: 3.0e-3, warmup_samples: 16}\n"
    ]


def _schedules(_: Path) -> list[bytes]:
    return [(ROOT / "configs" / "tiny.yaml").read_bytes()]


def _indices(_: Path) -> list[bytes]:
    lengths = np.array([3, 1, 4], np.int32)
    return [b"".join(index_bytes(3, np.dtype(np.uint16), lambda: [lengths]))]


def _ranks(folder: Path) -> list[bytes]:
    return [make_ranks(folder / "made").read_bytes()]


def _tokenizers(_: Path) -> list[bytes]:
    return [byte_tokenizer()]


def _read_ranks(folder: Path) -> None:
    read_ranks((folder / "x.tiktoken").read_bytes(), "x.tiktoken")


def _read_tokenizer(folder: Path) -> None:
    with contextlib.suppress(ValueError):  # as it promises; who calls it tells of the file
        digest_of_tokenizer((folder / "tokenizer.json").read_bytes())


PARSERS: Mapping[str, Parser] = {
    "archive": Parser("model.pt", _archives, _read_torch_file),
    "pickle": Parser("model.pt", _pickles, _read_torch_file, _in_archive),
    "metadata": Parser(".metadata", _metadata, read_metadata),
    "safetensors": Parser("x.safetensors", _weights, _read_safetensors),
    "safetensors-index": Parser("model.safetensors.index.json", _index, _open),
    "config": Parser("config.json", _configurations, _open),
    "family": Parser("config.json", _families, _read_family),
    "rank": Parser("pickle", _rank_pickles, _open_rank),
    "dist-metadata": Parser(f"{DIST}/.metadata", _dist_metadata, _open_dist),
    "common": Parser(f"{DIST}/common.pt", _common, _open_dist),
    "integrity": Parser(f"{DIST}/integrity.json", _integrity, _open_dist),
    "tracker": Parser("latest_checkpointed_iteration.txt", _trackers, iteration_folder),
    "arguments": Parser("args.json", _arguments, _read_arguments),
    "manifest": Parser("flmgrow.json", _manifests, read_manifest, _resealed),
    "manifest-sums": Parser("flmgrow.json", _manifests, read_manifest),
    "training-state": Parser("flmgrow_training.json", _states, read_training_state),
    "journal": Parser("journal", _journals, _read_journal),
    "target": Parser("target.yaml", _targets, _read_target),
    "stage": Parser("stage.yaml", _stages, lambda x: read_stage(x / "stage.yaml")),
    "schedule": Parser("schedule.yaml", _schedules, lambda x: read_schedule(x / "schedule.yaml")),
    "corpus-index": Parser("x.idx", _indices, lambda x: read_index(x / "x.idx")),
    "ranks": Parser("x.tiktoken", _ranks, _read_ranks),
    "tokenizer": Parser("tokenizer.json", _tokenizers, _read_tokenizer),
}
"""Every parser, by the name that ``make fuzz`` knows it by."""
