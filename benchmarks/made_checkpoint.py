"""Checkpoints with the shape of real ones, for measuring.

``python benchmarks/made_checkpoint.py FOLDER --preset 51b`` makes a folder of a few MB on disk
whose files have their full size: weights are holes, so all of them are zero. With ``--fill`` the
weights are random. The sums are right.
"""

import argparse
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flmgrow.formats.checkpoint import OptimizerState, TargetModel
from flmgrow.formats.layout.placements import VOCAB_MULTIPLE, Layout, make_layout, padded_size
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.formats.megatron.folders import tracker
from flmgrow.formats.megatron.new_model import new_model
from flmgrow.formats.targets import TargetFile
from flmgrow.formats.torch_file import zip_writer
from flmgrow.formats.torch_file.file_writer import TorchFileWriter, new_scalar
from flmgrow.formats.writing import described_files
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.storage.crc import Bytes, crc32

PIECE = 1 << 24
_LLAMA: dict[str, Any] = {
    "max_positions": 2048,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "tied": False,
    "linear_bias": False,
    "qkv_bias": False,
}
PRESETS = {
    "llama-300m": (ModelConfig(14, 1024, 4096, 4, 4, 64, 32000, **_LLAMA), (2, 2)),
    "llama-1b": (ModelConfig(22, 2048, 5632, 4, 8, 64, 32000, **_LLAMA), (2, 2)),
    "300m": (ModelConfig(24, 1024, 4096, 8, 1, 128, 32000, 2048), (2, 1)),
    "1b": (ModelConfig(20, 2048, 8192, 16, 1, 128, 50000, 2048), (2, 1)),
    "16b": (ModelConfig(80, 4096, 16384, 32, 1, 128, 100256, 2048), (2, 1)),
    "51b": (ModelConfig(80, 7168, 28672, 56, 1, 128, 100256, 2048), (4, 2)),
    "101b": (ModelConfig(80, 10240, 40960, 80, 1, 128, 100256, 2048), (4, 4)),
}
"""Shapes of two models of Llama's kind, and of the paper's three stages (those of 16B and 51B are a
choice), with TP and PP.
"""

ITERATION = 52000


def _random(number: int, nbytes: int) -> Iterator[bytes]:
    """Yield bfloat16 values of a plausible spread, equal on all tensor ranks, as copies must be."""
    generator = np.random.default_rng([number, nbytes])
    for start in range(0, nbytes, PIECE):
        values = generator.standard_normal(min(PIECE, nbytes - start) // 2, np.float32) * 0.02
        yield values.astype(ml_dtypes.bfloat16).tobytes()


def _write_filled(path: Path, root: object) -> None:
    """Write a torch file with random weights."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        writer = TorchFileWriter(root, file.write)
        for number, storage in enumerate(writer.storages):
            writer.write_storage(storage, _random(number, storage.nbytes))
        writer.finish()


def _write_sparse(path: Path, root: object) -> None:
    """Write a torch file whose storages are holes."""
    path.parent.mkdir(parents=True)
    hole = mmap.mmap(-1, PIECE)
    with path.open("wb") as file, memoryview(hole) as zeros:

        def write(data: bytes | bytearray | memoryview) -> None:
            if isinstance(data, memoryview) and data.obj is hole:
                file.seek(data.nbytes, 1)
            else:
                file.write(data)

        writer = TorchFileWriter(root, write)
        for storage in writer.storages:
            sizes = [PIECE] * (storage.nbytes // PIECE) + [storage.nbytes % PIECE]
            writer.write_storage(storage, [zeros[:size] for size in sizes if size])
        writer.finish()


def _adam() -> OptimizerState:
    """Describe Adam's state of 16-bit weights as Megatron-LM saves it: two groups, float32."""
    shared: dict[object, object] = {"lr": 1e-4, "lr_mult": 1.0, "is_decoupled_lr": False}
    groups = tuple({**shared, "wd_mult": decay} for decay in (1.0, 0.0))
    kinds = (State.MASTER, State.EXP_AVG, State.EXP_AVG_SQ)
    dtypes = dict.fromkeys(kinds, "float32")
    return OptimizerState(groups, step=new_scalar(ITERATION), mixed_precision=True, dtypes=dtypes)


def make(
    folder: Path, config: ModelConfig, layout: Layout, fill: bool = False, optimizer: bool = False
) -> None:
    """Make a bfloat16 checkpoint of ``config`` laid out as ``layout``; its weights are holes unless
    filled.
    """
    write = _write_filled if fill else _write_sparse
    padded = padded_size(config.vocab, VOCAB_MULTIPLE, layout.tp)
    arguments = new_arguments(config, padded, "bfloat16", "local")
    extra = {"optimizer": None} if optimizer else {}
    source = new_model("made", config, arguments, padded, "bfloat16", ITERATION, extra)
    target = TargetModel(
        config,
        layout,
        padded,
        donors=tuple(range(config.layers)),
        optimizer=_adam() if optimizer else None,
    )
    for file in described_files(source, target):
        assert isinstance(file, TargetFile)
        write(folder / file.path, file.root)
    name, content = tracker(ITERATION)
    (folder / name).write_bytes(content)


def sum_holes_once() -> None:
    """Compute the CRC32 of holes of one length once: many arrays have the same few shapes."""
    known = cache(lambda nbytes, value: crc32(bytes(nbytes), value))

    def of_any(data: Bytes, value: int = 0) -> int:
        hole = isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap)
        return known(len(data), value) if hole else crc32(data, value)

    vars(zip_writer)["crc32"] = of_any


def main() -> None:
    """Make the preset that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="51b")
    parser.add_argument("--fill", action="store_true", help="write random weights, not holes")
    parser.add_argument("--optimizer", action="store_true", help="with Adam's state")
    options = parser.parse_args()
    config, (tp, pp) = PRESETS[options.preset]
    sum_holes_once()
    layout = make_layout(config.layers, tp, pp)
    make(options.folder, config, layout, options.fill, options.optimizer)


if __name__ == "__main__":
    main()
