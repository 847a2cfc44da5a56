"""How fast means are taken: gigabytes of weights a second, on one core.

``python benchmarks/bench_means.py [--preset llama-300m] [--rounds 5]``. A growth that centres, or
that averages rows, reads a tensor once more for it, in a fixed order of addition. Every matrix of a
made checkpoint is read so, from the page cache, over each of its axes; told are CPU seconds, the
best of the rounds, of the sums alone and with reading and checking (after the first reading, which
checks the records). Of spreads, which look at a sample, the time for each tensor is told.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
from made_checkpoint import PRESETS, make

from flmgrow.formats.layout.placements import make_layout
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.axes import Box, full_box
from flmgrow.surgery.heap import keep_freed_memory
from flmgrow.surgery.statistics import BLOCK, Statistics, _sum

Call = Callable[[], object]


def best(rounds: int, call: Call) -> float:
    """Return the CPU seconds of ``call``, the fewest of so many rounds."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def sums(rounds: int) -> None:
    """Print how fast one block is summed."""
    values = np.random.default_rng(0).standard_normal((1, 256, BLOCK // 256))
    for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)):
        block = values.astype(dtype)
        for axis, of in ((1, "columns"), (2, "rows")):
            seconds = best(10 * rounds, partial(_sum, block, axis))
            print(f"{dtype.name:9} {of:8} {block.nbytes / seconds / 1e9:6.1f} GB/s")


def matrices(reader: LogicalReader) -> list[tuple[str, Box]]:
    """Return every matrix of a model, each layer's alone."""
    found = []
    for name, tensor in reader.tensors.items():
        whole = full_box(reader.shape(name))
        layers = range(*whole.ranges[0]) if tensor.layered else (None,)
        for layer in layers:
            first = whole.ranges[0] if layer is None else (layer, layer + 1)
            box = Box((first, *whole.ranges[1:]))
            if sum(extent > 1 for extent in box.shape) > 1:
                found.append((name, box))
    return found


def passes(reader: LogicalReader, rounds: int) -> None:
    """Print how fast all matrices are read and summed, over each axis, and looked at."""
    boxes = matrices(reader)
    size = sum(box.count * reader.dtype(name).itemsize for name, box in boxes)
    for place, of in ((-1, "rows"), (-2, "columns")):

        def read(place: int = place) -> None:
            statistics = Statistics(reader)
            for name, box in boxes:
                statistics.mean(name, box, len(box.ranges) + place)

        print(f"read and sum {of:8} {size / best(rounds, read) / 1e9:6.1f} GB/s")

    def look() -> None:
        statistics = Statistics(reader)
        for name, box in boxes:
            statistics.std(name, box)

    print(f"a spread {best(rounds, look) / len(boxes) * 1e3:21.2f} ms")


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="llama-300m")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()  # as commands do
    sums(options.rounds)
    config, (tp, pp) = PRESETS[options.preset]
    with TemporaryDirectory(dir=".", prefix="bench-") as place:
        folder = Path(place) / "source"
        make(folder, config, make_layout(config.layers, tp, pp), fill=True)
        with open_checkpoint(folder) as source:
            passes(source.reader, options.rounds)


if __name__ == "__main__":
    main()
