"""What saving and loading a run take of memory beside what its ranks hold anyway.

    python benchmarks/bench_saving.py [--rounds 2] [--layers 12] [--python OTHER/.venv/bin/python]

GPT-2's small model (124 million parameters) takes a step on two replicas with a distributed
optimizer, is saved, and is loaded again, in each format. Shown is by how much the resident memory
of a rank exceeds, at most, what it is before or after saving or loading.
``--python`` names interpreters with other versions of flmgrow, which take turns with this one.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

RANKS = 2
FORMATS = ("megatron", "torch_dist")
WORDS = "grow a model from the inside of a smaller one, and the loss goes on from where it was. "

Peaks = dict[tuple[str, int], float]
"""MiB beside what is held anyway, of what was done on which rank."""


def write_stage(folder: Path, form: str, layers: int, steps: int) -> Path:
    """Write a stage file of ``steps`` into ``folder``, and return it."""
    path = folder / "stage.yaml"
    content: dict[str, Any] = {
        "name": "saving",
        "model": {"num_layers": layers, "hidden_size": 768, "num_attention_heads": 12},
        "data": {
            "sequence_length": 32,
            "corpora": [{"path": str(folder.parent / "corpus")}],
        },
        "layout": {"dp": RANKS, "distributed_optimizer": True},
        "training": {"steps": steps, "batch": RANKS, "micro_batch": 1},
        "learning_rate": {"peak": 1e-4, "decay_tokens": "4K"},
        "checkpoint": {"every": 1, "keep": 1, "format": form},
    }
    content["model"]["vocab_size"] = 50257
    path.write_text(json.dumps(content), encoding="utf-8")  # which is YAML, too
    return path


def trained(python: str, stage: Path) -> Peaks:
    """Train a stage, and return what its ranks say of saving and loading."""
    script = Path(__file__).with_name("saving_rank.py")
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command = [python, *ranks, str(script), str(stage)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(each["doing"], each["rank"]): each["MiB"] for each in told}


def measured(python: str, form: str, layers: int, folder: Path) -> Peaks:
    """Return what a stage that is saved, loaded and saved again takes."""
    folder.mkdir()
    peaks = trained(python, write_stage(folder, form, layers, 1))
    return {**peaks, **trained(python, write_stage(folder, form, layers, 2))}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--python", action="append", default=[])
    options = parser.parse_args()
    pythons = [sys.executable, *options.python]
    found: dict[tuple[str, str], list[Peaks]] = {key: [] for key in product(FORMATS, pythons)}
    with TemporaryDirectory(dir=".", prefix="bench-") as place:
        root = Path(place).resolve()
        (root / "text.txt").write_text(WORDS * 100, encoding="utf-8")
        prepare = ["data", "prepare", str(root / "text.txt"), str(root / "corpus")]
        words = [sys.executable, "-m", "flmgrow", *prepare, "--tokenizer", "bytes"]
        subprocess.run(words, capture_output=True, check=True)
        for number in range(options.rounds):
            for place_of, (form, python) in enumerate(found):
                folder = root / f"{number}-{place_of}"
                found[form, python].append(measured(python, form, options.layers, folder))
                subprocess.run(["rm", "-r", str(folder)], check=True)
    print(f"{'MiB':<12}{'':<8}" + "".join(f"{f'rank {rank}':>9}" for rank in range(RANKS)))
    for (form, python), rounds in found.items():
        for doing in ("saving", "loading"):
            middle = (median(each[doing, rank] for each in rounds) for rank in range(RANKS))
            numbers = "".join(f"{one:>9.0f}" for one in middle)
            print(f"{form:<12}{doing:<8}{numbers}  {python}")


if __name__ == "__main__":
    main()
