"""The same jobs by flmgrow and by what else does them: seconds, CPU seconds, and peak memory.

``python benchmarks/bench_others.py [--preset llama-1b] [--rounds 2] [--mergekit mergekit-yaml]``
makes a checkpoint with random weights, and carries out two jobs, tools in turn:

* **Depth**: a Hugging Face folder gets half as many layers again, whose output projections are
  zero: by ``flmgrow expand --method zero``, by mergekit's passthrough (with ``--lazy-unpickle``, if
  it is installed), and by transformers: load, copy modules, save.
* **Formats**: a distributed checkpoint becomes one torch file, and back: by ``flmgrow reshard`` and
  by torch's ``torch.distributed.checkpoint.format_utils``, which hold the model in memory and know
  nothing of Megatron's parallel layouts.

None of the others reads back what it wrote, keeps sums, or waits for the disk; the second row of
flmgrow does without reading back, too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench_surgery import FLMGROW, GROWTHS, MAKE, Run, measure

BY_HAND = """
import copy, sys, torch
from transformers import AutoModelForCausalLM
source, out, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
old = model.model.layers
new = torch.nn.ModuleList(old)
while len(new) < layers:
    layer = copy.deepcopy(old[-1])
    layer.self_attn.layer_idx = len(new)
    for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
        torch.nn.init.zeros_(part.weight)
    new.append(layer)
model.model.layers, model.config.num_hidden_layers = new, layers
model.save_pretrained(out)
"""
FORMAT_UTILS = "import sys; from torch.distributed.checkpoint import format_utils; "
TO_TORCH = FORMAT_UTILS + "format_utils.dcp_to_torch_save(sys.argv[1], sys.argv[2])"
TO_DCP = FORMAT_UTILS + "format_utils.torch_save_to_dcp(sys.argv[1], sys.argv[2])"

Commands = Mapping[str, Sequence[str]]


def deepened(source: Path, out: Path, layers: int, mergekit: str | None) -> Commands:
    """Return the commands that add layers to a Hugging Face folder."""
    old = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    grow = [
        *FLMGROW,
        "expand",
        str(source),
        str(out),
        "--num-layers",
        str(layers),
        "--method",
        "zero",
    ]
    commands = {
        "flmgrow expand": grow,
        "flmgrow expand, not read back": [*grow, "--no-double-check"],
        "transformers by hand": [sys.executable, "-c", BY_HAND, str(source), str(out), str(layers)],
    }
    if mergekit is not None:
        recipe = source.with_name("passthrough.yaml")
        recipe.write_text(json.dumps(_passthrough(str(source), old, layers)))
        options = ["--lazy-unpickle", "--clone-tensors", "--no-copy-tokenizer"]
        commands["mergekit passthrough"] = [mergekit, str(recipe), str(out), *options]
    return commands


def _passthrough(source: str, old: int, new: int) -> object:
    """Return mergekit's recipe (JSON is YAML): the last layers once more, silent."""
    silent = [{"filter": name, "value": 0.0} for name in ("o_proj", "down_proj")]
    again = {
        "model": source,
        "layer_range": [2 * old - new, old],
        "parameters": {"scale": [*silent, {"value": 1.0}]},
    }
    first = {"model": source, "layer_range": [0, old]}
    slices = [{"sources": [first]}, {"sources": [again]}]
    return {"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices}


def converted(dist: Path, single: Path, out: Path) -> Mapping[str, Commands]:
    """Return the commands that turn a distributed checkpoint into one file, and such a file into a
    distributed checkpoint.
    """
    iteration = next(path for path in dist.glob("iter_*") if path.is_dir())
    one = [*FLMGROW, "reshard", str(dist), str(out), "--format", "megatron", "--tp", "1"]
    many = [*FLMGROW, "reshard", str(single), str(out), "--format", "torch_dist"]
    file = next(single.rglob("*.pt"))
    unread = "flmgrow reshard, not read back"
    return {
        "a distributed checkpoint to one file": {
            "flmgrow reshard": [*one, "--pp", "1"],
            unread: [*one, "--pp", "1", "--no-double-check"],
            "format_utils": [sys.executable, "-c", TO_TORCH, str(iteration), str(out)],
        },
        "one file to a distributed checkpoint": {
            "flmgrow reshard": many,
            unread: [*many, "--no-double-check"],
            "format_utils": [sys.executable, "-c", TO_DCP, str(file), str(out)],
        },
    }


def compare(title: str, commands: Commands, out: Path, rounds: int) -> None:
    """Run the commands in turn, and print their medians."""
    print(f"{title:44}{'s':>9}{'CPU s':>9}{'MiB':>9}{'GB':>9}")
    found: dict[str, list[Run]] = {name: [] for name in commands}
    sizes = dict.fromkeys(commands, 0)
    for _ in range(rounds):
        for name, command in commands.items():
            os.sync()  # what others wrote is not this command's to flush
            found[name].append(measure(command))
            written = [out] if out.is_file() else out.rglob("*")
            sizes[name] = sum(path.stat().st_size for path in written if path.is_file())
            out.unlink() if out.is_file() else shutil.rmtree(out)
    for name, runs in found.items():
        wall, cpu, peak = (median(column) for column in zip(*runs, strict=True))
        print(f"    {name:40}{wall:9.1f}{cpu:9.1f}{peak:9.0f}{sizes[name] / 1e9:9.2f}", flush=True)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=GROWTHS, default="llama-300m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"), metavar="PROGRAM")
    options = parser.parse_args()
    with TemporaryDirectory(dir=".", prefix="bench-") as place:
        folder = Path(place).resolve()
        legacy, hub, dist = folder / "legacy", folder / "hub", folder / "dist"
        subprocess.run([*MAKE, str(legacy), "--preset", options.preset, "--fill"], check=True)
        measure([*FLMGROW, "export", str(legacy), str(hub)])
        layers = int(GROWTHS[options.preset]["layers"])
        commands = deepened(hub, folder / "out", layers, options.mergekit)
        compare(f"to {layers} layers", commands, folder / "out", options.rounds)
        shutil.rmtree(hub)
        single = folder / "single"
        measure([*FLMGROW, "reshard", str(legacy), str(dist), "--format", "torch_dist"])
        measure([*FLMGROW, "reshard", str(legacy), str(single), "--tp", "1", "--pp", "1"])
        shutil.rmtree(legacy)
        for title, each in converted(dist, single, folder / "out").items():
            compare(title, each, folder / "out", options.rounds)


if __name__ == "__main__":
    main()
