"""Growing 51B to 101B, carried out for two of its shards; what the whole takes is projected.

``python benchmarks/proof_101b.py [--optimizer] [--shards 0,5] [--tp 4] [--pp 4]``. Nobody has the
disk for such a checkpoint at hand: the source has its full shape (TP 4 x PP 2, with Adam's states,
714 GB), but its weights are holes. It is opened, planned and read like any other; of the result,
``--only-shards`` writes two, which the disk must hold (so with Adam's states, take more and smaller
ranks than 4 x 4). All other shards have the same shapes, so what two of them take is known for all.

The projection multiplies what was measured, and assumes the rest, which it says.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_surgery import FLMGROW, MAKE, measure

from flmgrow.storage.checksums import checksum_of

GROWTH = [
    *("--hidden-size", "10240", "--num-attention-heads", "80", "--ffn-hidden-size", "40960"),
    *("--method", "mask"),
]
RUN = """
from flmgrow.surgery.statistics import Statistics
found = Statistics._std
Statistics._std = lambda self, *box: found(self, *box) or 0.016
from flmgrow.cli import main
main()
"""
"""flmgrow, with a spread for what is all zero: what is drawn with none costs nothing."""
CORES = 16
"""Cores of a node that ranks are given."""

GB = 1e9


@dataclass(frozen=True)
class Measured:
    """What two shards took: CPU seconds to write them and to read them once more, and the cores
    that were used at most.
    """

    cpu: float
    check: float
    cores: int

    def hours(self, shards: int, nodes: int) -> tuple[int, float]:
        """Return how many ranks have work on so many nodes, and how long they take, in hours.

        A rank has as many cores as were used here, and writes one shard after the other.
        """
        ranks = min(shards, nodes * CORES // self.cores)
        turns = -(-shards // ranks)
        return ranks, turns * (self.cpu / self.cores + self.check) / 2 / 3600


def shape_of(source: Path, out: Path, options: list[str]) -> tuple[dict[str, int], int, float]:
    """Return the sizes of the result's shards, the size of the source, and seconds to plan it."""
    begin = time.monotonic()
    command = [*FLMGROW, "expand", str(source), str(out), *options, "--dry-run", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    plan = json.loads(done.stdout)
    files = {path: size for path, size in plan["result"]["files"].items() if path.endswith(".pt")}
    return files, plan["source"]["bytes"], seconds


def main() -> None:
    """Make the source, carry out two shards, and print what was measured and what follows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", action="store_true", help="grow Adam's states as well")
    parser.add_argument("--shards", default="0,5", help="two of them, by number")
    parser.add_argument("--tp", default="4")
    parser.add_argument("--pp", default="4")
    parser.add_argument("--workers", default=str(os.cpu_count()))
    wanted = parser.parse_args()
    layout = ["--tp", wanted.tp, "--pp", wanted.pp]
    options = [*GROWTH, *layout, *([] if wanted.optimizer else ["--no-optimizer"])]
    with TemporaryDirectory(dir=".", prefix="bench-proof-") as name:
        source, out = Path(name) / "51b", Path(name) / "101b"
        make = [*MAKE, str(source), "--preset", "51b", "--optimizer"]
        making, _, _ = measure(make)
        on_disk = sum(each.stat().st_blocks * 512 for each in source.rglob("*"))
        files, read, planning = shape_of(source, out, options)
        chosen = [list(files)[int(number)] for number in wanted.shards.split(",")]
        run = [
            sys.executable,
            "-c",
            RUN,
            "expand",
            str(source),
            str(out),
            *options,
            "--workers",
            wanted.workers,
        ]
        wall, cpu, peak = measure([*run, "--only-shards", wanted.shards])
        data = Path(name) / ".101b.flmgrow" / "data"
        begin, begin_cpu = time.monotonic(), time.process_time()
        for path in chosen:
            checksum_of(data / path)
        check, check_cpu = time.monotonic() - begin, time.process_time() - begin_cpu
        nbytes = sum(files[path] for path in chosen)
        assert nbytes == sum((data / path).stat().st_size for path in chosen)
    found = Measured(cpu, check_cpu, int(wanted.workers))
    total = sum(files.values())
    print(f"source   51B, TP 4 x PP 2, with Adam's states: {read / GB:.0f} GB read for this plan,")
    print(f"         {on_disk / 1e6:.0f} MB on the disk, made in {making:.0f} s")
    print(f"plan     {len(files)} shards, {total / GB:.0f} GB; made in {planning:.1f} s")
    print(f"wrote    {' '.join(chosen)}: {nbytes / GB:.1f} GB")
    print(f"took     {wall:.0f} s, {cpu:.0f} CPU s, {wanted.workers} workers, {peak:.0f} MiB")
    print(f"checked  in {check:.0f} s, {check_cpu:.0f} CPU s")
    print(f"\n{'nodes':>5} {'ranks with work':>16} {'hours':>7} {'written GB/s':>13}")
    for nodes in (1, 4, 24):
        ranks, hours = found.hours(len(files), nodes)
        print(f"{nodes:5} {ranks:16} {hours:7.2f} {total / GB / hours / 3600:13.2f}")
    print(
        f"\nassumes  nodes of {CORES} cores as fast as these, all busy, {wanted.workers} to a rank;"
    )
    print("         a file system that nobody waits for: it takes as much as the last column says;")
    print(
        "         reads of the source as cheap as of holes; no more than one rank for each shard."
    )


if __name__ == "__main__":
    main()
