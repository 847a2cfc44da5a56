"""What a surgery costs beside copying as much: seconds, CPU seconds, and peak memory.

``python benchmarks/bench_surgery.py [--preset llama-1b] [--rounds 3] [--against REVISION]``. After
each command ``cp -r`` copies its output, and ``sync`` flushes the copy to the disk, as flmgrow does
and ``cp`` does not: the ratios of the command to the one, and to the two, are what to look at, as
machines are noisy. With ``--against``, the same commands of older revisions (commits of this
repository) take turns with today's: A B A B. With ``--no-double-check`` today's command also takes
turns with itself without reading its output back. Shown are medians. Sources are in the page cache
unless ``--cold``. Peak memory is that of the whole process; it must not follow the checkpoint's
size. A plan for a checkpoint of full size is timed as well.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("flmgrow", "formats", "operators", "trainer")
FLMGROW = [sys.executable, "-m", "flmgrow"]
MAKE = [sys.executable, str(Path(__file__).with_name("made_checkpoint.py"))]
TODAY, UNREAD = "today", "today, not read back"
MEASURE = """
import resource, subprocess, sys, time
begin = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, time.monotonic() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""

Lengths = Mapping[str, str]
LLAMA: Lengths = {"layers": "32", "wide": "2560", "ffn": "7040", "groups": "5", "twice": "4096"}
GROWTHS: Mapping[str, Lengths] = {
    "llama-1b": {**LLAMA, "twice_ffn": "11264", "twice_groups": "8", "pp": "2"},
    "llama-300m": {
        "layers": "20", "wide": "1280", "ffn": "5120", "groups": "6", "twice": "2048",
        "twice_ffn": "8192", "twice_groups": "8", "pp": "2",
    },
}  # fmt: skip
"""What each preset grows to: in depth, in width, and to twice its width."""


class Run(NamedTuple):
    """What one run took: seconds, CPU seconds, MiB."""

    wall: float
    cpu: float
    peak: float


def commands_for(lengths: Lengths) -> Mapping[str, Sequence[str]]:
    """Return the commands to measure, without source and output."""
    width = ["--hidden-size", lengths["wide"], "--ffn-hidden-size", lengths["ffn"]]
    width += ["--num-query-groups", lengths["groups"], "--tp", "1"]
    twice = ["--hidden-size", lengths["twice"], "--ffn-hidden-size", lengths["twice_ffn"]]
    twice += ["--num-query-groups", lengths["twice_groups"]]
    return {
        "reshard": ["reshard", "--tp", "1", "--pp", "1"],
        "reshard, 300M": ["reshard", "--tp", "4", "--pp", "1", "--max-memory", "300M"],
        "depth, zero": ["expand", "--num-layers", lengths["layers"], "--method", "zero"],
        "width, zero": ["expand", *width, "--method", "zero"],
        "width, mask": ["expand", *width, "--method", "mask"],
        "width, copy": ["expand", *twice, "--method", "copy"],
    }


def measure(command: Sequence[str], tree: Path | None = None) -> Run:
    """Run ``command`` (of the package in ``tree``, if it is not the installed one) and return what
    it took.
    """
    path = {} if tree is None else {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        check=True, capture_output=True, text=True, env={**os.environ, **path}, cwd=tree,
    )  # fmt: skip
    code, wall, cpu, peak = done.stdout.split()
    if code != "0":
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(float(wall), float(cpu), float(peak) / (1 << 10))


def tree_of(revision: str, folder: Path) -> Path:
    """Lay the package as it was at ``revision`` into ``folder``, ready to import."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, *PACKAGE], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    for name in PACKAGE[1:]:
        (folder / name).rename(folder / PACKAGE[0] / name)
    return folder


def forget(folder: Path) -> None:
    """Drop the files of ``folder`` from the page cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Pair(NamedTuple):
    """A command, and ``cp -r`` of what it made, of ``size`` bytes; then flushing the copy."""

    run: Run
    copying: Run
    flushing: Run
    size: int


def measured(
    command: Sequence[str], source: Path, out: Path, tree: Path | None, cold: bool
) -> Pair:
    """Run ``command``, and copy what it made."""
    copy = out.with_name("copy")
    os.sync()  # what others wrote is not this command's to flush
    if cold:
        forget(source)
    first, *rest = command
    run = measure([*FLMGROW, first, str(source), str(out), *rest], tree)
    if cold:
        forget(out)
    copying = measure(["cp", "-r", str(out), str(copy)])
    flushing = measure(["sync", "-f", str(copy)])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    shutil.rmtree(copy)
    return Pair(run, copying, flushing, size)


HEAD = ("GB", "s", "CPU s", "MiB", "cp s", "cp CPU s", "flush s", "to cp", "flushed", "CPU")


def row(label: str, cells: Sequence[str]) -> str:
    """Return a line of the table."""
    return f"{label:40}" + "".join(f"{cell:>9}" for cell in cells)


def report(label: str, pairs: Sequence[Pair]) -> None:
    """Print medians, and the medians of the ratios: wall to ``cp``, to ``cp`` and flushing; CPU."""
    columns = [
        *(pairs[0].size / 1e9,),
        *(median(column) for column in zip(*(pair.run for pair in pairs), strict=True)),
        median(pair.copying.wall for pair in pairs),
        median(pair.copying.cpu for pair in pairs),
        median(pair.flushing.wall for pair in pairs),
        median(pair.run.wall / pair.copying.wall for pair in pairs),
        median(pair.run.wall / (pair.copying.wall + pair.flushing.wall) for pair in pairs),
        median(pair.run.cpu / pair.copying.cpu for pair in pairs),
    ]
    print(row(label, [f"{value:.0f}" if value > 50 else f"{value:.2f}" for value in columns]))
    sys.stdout.flush()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=GROWTHS, default="llama-300m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", action="append", default=[], metavar="REVISION")
    parser.add_argument("--no-double-check", action="store_true")
    parser.add_argument("--only", action="append", metavar="COMMAND")
    parser.add_argument("--cold", action="store_true", help="read sources from the disk")
    options = parser.parse_args()
    with TemporaryDirectory(dir=".", prefix="bench-") as place:
        folder = Path(place).resolve()
        source, out = folder / "source", folder / "out"
        trees: dict[str, Path | None] = {TODAY: None}
        for number, revision in enumerate(options.against):
            trees[revision] = tree_of(revision, folder / f"tree{number}")
        if options.no_double_check:
            trees[UNREAD] = None
        subprocess.run([*MAKE, str(source), "--preset", options.preset, "--fill"], check=True)
        print(row("", HEAD))
        for label, command in commands_for(GROWTHS[options.preset]).items():
            if options.only and label not in options.only:
                continue
            found: dict[str, list[Pair]] = {tree: [] for tree in trees}
            for _ in range(options.rounds):
                for tree, path in trees.items():
                    words = [*command, "--no-double-check"] if tree == UNREAD else command
                    found[tree].append(measured(words, source, out, path, options.cold))
            for tree, pairs in found.items():
                report(label if tree == TODAY else f"{label} ({tree})", pairs)
        if options.only:
            return
        shutil.rmtree(source)
        subprocess.run([*MAKE, str(source), "--preset", "51b"], check=True)
        plan = [*FLMGROW, "expand", str(source), str(out), "--hidden-size", "10240", "--dry-run"]
        runs = [measure([*plan, "--pp", "4"]) for _ in range(options.rounds)]
        wall, cpu, peak = (median(column) for column in zip(*runs, strict=True))
        print(row("dry run, 50B -> 4 x 4", ["", f"{wall:.2f}", f"{cpu:.2f}", f"{peak:.0f}"]))


if __name__ == "__main__":
    main()
