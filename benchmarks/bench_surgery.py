"""What a surgery costs beside copying the same files: seconds, CPU seconds, and peak memory.

``python benchmarks/bench_surgery.py [--preset 300m] [--rounds 2]``. Machines are noisy, so the
commands run in turn (A B C A B C ...), and the ratio to copying is what to look at. Copying
includes flushing to the disk, as flmgrow does. Peak memory is that of the whole process; it must
not follow the checkpoint's size. A plan for a checkpoint of full size is timed as well.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

FLMGROW = [sys.executable, "-m", "flmgrow"]
MAKE = [sys.executable, str(Path(__file__).with_name("made_checkpoint.py"))]
MEASURE = """
import resource, subprocess, sys, time
begin = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, time.monotonic() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Run ``command`` and return its seconds, its CPU seconds and its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], check=True, capture_output=True, text=True
    )
    code, wall, cpu, peak = done.stdout.split()
    if code != "0":
        raise SystemExit(f"failed: {' '.join(command)}")
    return float(wall), float(cpu), float(peak) / (1 << 10)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="300m")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with TemporaryDirectory(dir=".", prefix="bench-") as name:
        folder = Path(name)
        source, out = folder / "source", folder / "out"
        subprocess.run([*MAKE, str(source), "--preset", options.preset, "--fill"], check=True)
        pair = [str(source), str(out)]
        grow = ["--ffn-hidden-size", "6144", "--num-layers", "26"]
        expand = [*FLMGROW, "expand", *pair, *grow, "--method"]
        commands = {
            "cp -r": ["sh", "-c", f"cp -r {pair[0]} {pair[1]} && sync -f {pair[1]}"],
            "reshard, 300M": [*FLMGROW, "reshard", *pair, "--tp", "4", "--max-memory", "300M"],
            "reshard, 1G": [*FLMGROW, "reshard", *pair, "--tp", "4"],
            "expand zero, 300M": [*expand, "zero", "--max-memory", "300M"],
            "expand zero, 1G": [*expand, "zero"],
            "expand copy, 1G": [*expand, "copy"],
        }
        found: dict[str, list[tuple[float, float, float]]] = {label: [] for label in commands}
        for _ in range(options.rounds):
            for label, command in commands.items():
                found[label].append(measure(command))
                shutil.rmtree(out)
        shutil.rmtree(source)
        subprocess.run([*MAKE, str(source), "--preset", "51b"], check=True)
        plan = [*FLMGROW, "expand", *pair, "--hidden-size", "10240", "--pp", "4", "--dry-run"]
        found["dry run, 50B -> 4 x 4"] = [measure(plan) for _ in range(options.rounds)]
    print(f"{'':24}{'seconds':>10}{'to cp':>8}{'CPU s':>10}{'peak MiB':>10}")
    copied = sum(run[0] for run in found["cp -r"])
    for label, runs in found.items():
        wall, cpu, peak = (sum(run[i] for run in runs) / len(runs) for i in range(3))
        ratio = sum(run[0] for run in runs) / copied
        print(f"{label:24}{wall:10.2f}{ratio:8.2f}{cpu:10.2f}{peak:10.0f}")


if __name__ == "__main__":
    main()
