"""Checkpoints with the shape of real ones, for measuring.

``python benchmarks/made_checkpoint.py FOLDER --preset 51b`` makes a folder of a few MB on disk
whose files have their full size: weights are holes, and their CRC32 sums are wrong, so it can be
planned but not expanded. With ``--fill`` the weights are random and the sums right.
"""

import argparse
import mmap
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from flmgrow.formats.layout.placements import Layout, make_layout, padded_size, placements
from flmgrow.formats.megatron.arguments.model import written_arguments
from flmgrow.formats.megatron.arguments.pipeline import written_layout
from flmgrow.formats.megatron.folders import folder_name, rank_path, tracker
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.torch_file import zip_writer
from flmgrow.formats.torch_file.file import TorchFileWriter, new_tensor
from flmgrow.formats.torch_file.values import OrderedMap, make_namespace
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import logical_tensors

PIECE = 1 << 24
PRESETS = {
    "300m": (ModelConfig(24, 1024, 4096, 8, 1, 128, 32000, 2048), (2, 1)),
    "1b": (ModelConfig(20, 2048, 8192, 16, 1, 128, 50000, 2048), (2, 1)),
    "16b": (ModelConfig(80, 4096, 16384, 32, 1, 128, 100256, 2048), (2, 1)),
    "51b": (ModelConfig(80, 7168, 28672, 56, 1, 128, 100256, 2048), (4, 2)),
    "101b": (ModelConfig(80, 10240, 40960, 80, 1, 128, 100256, 2048), (4, 4)),
}
"""Shapes of the paper's three stages (those of 16B and 51B are a choice), with TP and PP."""

ITERATION = 52000


def _random(nbytes: int) -> Iterator[bytes]:
    """Yield bfloat16 values of a plausible spread."""
    generator = np.random.default_rng(nbytes)
    for start in range(0, nbytes, PIECE):
        values = generator.standard_normal(min(PIECE, nbytes - start) // 2, np.float32) * 0.02
        yield values.astype(ml_dtypes.bfloat16).tobytes()


def _write_filled(path: Path, root: object) -> None:
    """Write a torch file with random weights."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        writer = TorchFileWriter(root, file.write)
        for storage in writer.storages:
            writer.write_storage(storage, _random(storage.nbytes))
        writer.finish()


def _write_sparse(path: Path, root: object) -> None:
    """Write a torch file whose storages are holes."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:

        def write(data: bytes | bytearray | memoryview) -> None:
            if memoryview(data).nbytes > 1 << 16:
                file.seek(memoryview(data).nbytes, 1)
            else:
                file.write(data)

        writer = TorchFileWriter(root, write)
        for storage in writer.storages:
            if storage.nbytes > 1 << 16:
                with mmap.mmap(-1, storage.nbytes) as zeros, memoryview(zeros) as view:
                    writer.write_storage(storage, [view])
            else:
                writer.write_storage(storage, [bytes(storage.nbytes)])
        writer.finish()


def make(folder: Path, config: ModelConfig, layout: Layout, fill: bool = False) -> None:
    """Make a bfloat16 checkpoint of ``config`` laid out as ``layout``; its weights are holes unless
    filled.
    """
    write = _write_filled if fill else _write_sparse
    padded = padded_size(config.vocab, 128, layout.tp)
    arguments = {
        **written_arguments({"norm_epsilon": 1e-5}, config),
        **written_layout({}, layout),
        "padded_vocab_size": padded,
        "max_position_embeddings": config.max_positions,
        "normalization": "LayerNorm",
        "position_embedding_type": "rope",
        "num_query_groups": 1,
    }
    sizes = {**config.sizes, Axis.VOCAB: padded}
    expected = placements(ROWS, logical_tensors(config), sizes, layout)
    for tensor, pipeline in layout.ranks:
        state = OrderedMap()
        for placement in expected:
            if (placement.tensor_rank, placement.pipeline_rank) == (tensor, pipeline):
                state[placement.key] = new_tensor("bfloat16", placement.shape)
        root = {
            "args": make_namespace(arguments),
            "checkpoint_version": 3.0,
            "iteration": ITERATION,
            "model": state,
        }
        write(folder / rank_path(layout, folder_name(ITERATION), tensor, pipeline), root)
    name, content = tracker(ITERATION)
    (folder / name).write_bytes(content)


def main() -> None:
    """Make the preset that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="51b")
    parser.add_argument("--fill", action="store_true", help="write random weights, not holes")
    options = parser.parse_args()
    config, (tp, pp) = PRESETS[options.preset]
    if not options.fill:
        # Summing up holes would take as long as writing them, and nobody reads the sums.
        vars(zip_writer)["crc32"] = lambda data, value=0: 0
    make(options.folder, config, make_layout(config.layers, tp, pp), options.fill)


if __name__ == "__main__":
    main()
