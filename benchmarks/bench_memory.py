"""Whether peak memory follows a checkpoint's size.

``python benchmarks/bench_memory.py [--sizes 0.3 2.2 20] [--only COMMAND]``. Nobody has the disk for
many checkpoints of 20 GB at hand, and none is needed: weights are holes, so all of them are zero,
and what is written of them is left a hole, too. All else is done as ever: planned, read, checked,
computed, summed, flushed, read back. Shown are the MiB that each process held at most.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_surgery import measure
from made_checkpoint import make, sum_holes_once

from flmgrow.formats.layout.placements import make_layout
from flmgrow.model.config import ModelConfig

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "linear_bias": False,
    "qkv_bias": False,
    "tied": True,
}
SHAPES = {
    "0.3": (16, 768, 2048, 4, 3, 64),
    "2.2": (22, 2048, 5632, 4, 8, 64),
    "20": (44, 4096, 14336, 8, 4, 128),
}
"""Layers, hidden size, FFN units, groups, queries of each, and their size, by gigabytes."""

COMMANDS = {
    "inspect": "inspect SRC",
    "integrity": "verify --integrity SRC",
    "depth": "expand SRC DST --num-layers DEEPER --method zero",
    "reshard": "reshard SRC DST --tp 1 --pp 1",
    "torch_dist": "reshard SRC DST --format torch_dist",
    "export": "export SRC DST",
    "verify": "verify SRC WRITTEN --no-receipt",
}

RUN = """
import os
import numpy as np
from flmgrow.storage import durable
write = durable.write_all
def write_holes(descriptor, data, position):
    if data.nbytes > 4096 and not np.frombuffer(data, np.uint8).any():
        os.ftruncate(descriptor, position + data.nbytes)
    else:
        write(descriptor, data, position)
durable.write_all = write_holes
durable.reserve = lambda *_: None
from flmgrow.cli import main
main()
"""
"""flmgrow, which leaves what is all zero a hole."""


def peaks(size: str, only: list[str], folder: Path) -> dict[str, float]:
    """Return the MiB of each command on a checkpoint of ``size``."""
    layers, hidden, ffn, groups, queries, width = SHAPES[size]
    config = ModelConfig(layers, hidden, ffn, groups, queries, width, 32000, 2048, **_LLAMA)
    source, out, written = folder / "source", folder / "out", folder / "written"
    make(source, config, make_layout(layers, 2, 2))
    words = {"SRC": str(source), "DST": str(out), "WRITTEN": str(written)}
    words["DEEPER"] = str(layers * 3 // 2)
    found = {}
    for label in only:
        if label == "verify":
            run([*COMMANDS["reshard"].split()], {**words, "DST": str(written)})
        found[label] = run(COMMANDS[label].split(), words)
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(source)
    shutil.rmtree(written, ignore_errors=True)
    return found


def run(command: list[str], words: dict[str, str]) -> float:
    """Run a command; return the MiB that it held at most."""
    filled = [words.get(word, word) for word in command]
    return measure([sys.executable, "-c", RUN, *filled]).peak


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--only", action="append", choices=COMMANDS)
    options = parser.parse_args()
    only = options.only or list(COMMANDS)
    sum_holes_once()
    with TemporaryDirectory(dir=".", prefix="bench-") as place:
        columns = [peaks(size, only, Path(place).resolve()) for size in options.sizes]
    print(f"{'':12}" + "".join(f"{size:>8} GB" for size in options.sizes))
    for label in only:
        print(f"{label:12}" + "".join(f"{column[label]:>7.0f} MiB" for column in columns))


if __name__ == "__main__":
    main()
