"""How long do commands take that only look? In seconds of the processor, which others do not share.

``python benchmarks/bench_start.py [OTHER ...]`` runs each command several times with this tree, and
in turn with every OTHER Python that is named (``.venv/bin/python`` of another version's tree), and
prints the least, behind what it should be at most. The checkpoint of 51B has optimizer state and is
made of holes: only headers are read.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from made_checkpoint import PRESETS, make, sum_holes_once

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from pico import make_checkpoint

from flmgrow.formats.layout.placements import make_layout

REPEATS = 5
COMMANDS = {
    "--version": (0.15, ["--version"]),
    "--help": (0.15, ["--help"]),
    "inspect, a small checkpoint": (0.4, ["inspect", "{small}"]),
    "expand --dry-run, 51B with optimizer": (2.0, [
        "expand", "{large}", "{new}", "--hidden-size", "10240", "--ffn-hidden-size", "40960",
        "--num-attention-heads", "80", "--tp", "4", "--pp", "4", "--dry-run",
    ]),
}  # fmt: skip
"""Each command with the seconds that it should take at most, and its words."""


def seconds(python: str, words: list[str], place: str) -> float:
    """Return the processor time that a command takes, away from this tree.

    Modules are compiled once, as in an installation, whatever the environment says.
    """
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    own["PYTHONPYCACHEPREFIX"] = place
    command = [python, "-m", "flmgrow", *words]
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, cwd=place, env=own)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def main() -> None:
    """Measure and print a table, one column for each Python."""
    pythons = [sys.executable, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        places = {"small": Path(folder, "a"), "large": Path(folder, "b"), "new": Path(folder, "c")}
        make_checkpoint(places["small"], "llama")
        sum_holes_once()
        config, (tp, pp) = PRESETS["51b"]
        make(places["large"], config, make_layout(config.layers, tp, pp), optimizer=True)
        trees = "".join(f"{Path(python).parents[2].name:>12}" for python in pythons)
        print(f"{'CPU seconds':<40}{'at most':>12}{trees}")
        for name, (most, words) in COMMANDS.items():
            filled = [word.format(**places) for word in words]
            runs = [[seconds(python, filled, folder) for python in pythons] for _ in range(REPEATS)]
            least = [min(own) for own in zip(*runs, strict=True)]
            figures = "".join(f"{value:>12.2f}" for value in (most, *least))
            print(f"{name:<40}{figures}", flush=True)


if __name__ == "__main__":
    main()
