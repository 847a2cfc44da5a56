"""How fast an evaluation is: flmgrow's own model beside lm-evaluation-harness's ``hf``.

``python benchmarks/bench_eval.py [FOLDER]`` times both on one Hugging Face folder, in turn (A B A
B), and prints wall and CPU seconds of each kind of question, and the largest difference between
their log-likelihoods. Without a folder it is SmolLM2-135M-Instruct, got by benchmarks/smollm2.py.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import smollm2
import torch
from eval_work import Text, contexts, endings, lettered
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from flmgrow.evaluation.backends import Computing, language_model
from flmgrow.formats.opening import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "docs").glob("**/*.md"))
GENERATION = {"until": ["\n\n"], "max_gen_toks": 48, "do_sample": False}


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Return requests as the harness makes them."""
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("task", number, 1))
        for number, each in enumerate(arguments)
    ]


def work(scale: float) -> dict[str, tuple[str, list[Instance]]]:
    """Return the questions of each kind, and the method that answers them."""
    text = Text(FILES)

    def few(count: int) -> int:
        return max(1, round(count * scale))

    asked = {
        "mmlu-like, 5 shots": lettered(text, 5, 2, few(8)),
        "arc-like, 25 shots": endings(text, 25, few(4), (15, 40), (1, 8)),
        "hellaswag-like, 10 shots": endings(text, 10, few(6), (30, 60), (15, 40)),
        "truthfulqa-like, 0 shots": endings(text, 0, few(24), (60, 90), (5, 20)),
    }
    found = {
        name: ("loglikelihood", requests("loglikelihood", list(pairs)))
        for name, pairs in asked.items()
    }
    texts = [(context, GENERATION) for context in contexts(text, few(16))]
    return {**found, "generate_until": ("generate_until", requests("generate_until", texts))}


def timed(do: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what ``do`` returns, and the wall and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = do()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def difference(one: Sequence[Any], other: Sequence[Any]) -> str:
    """Return how far two lists of answers are apart."""
    if isinstance(one[0], str):
        return f"{sum(a != b for a, b in zip(one, other, strict=True))} of {len(one)} texts differ"
    return f"{max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True)):.1e}"


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8, help="of hf; flmgrow chooses")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of questions")
    parser.add_argument("--only", default="", help="kinds of questions whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.folder is not None:
        compare(options.folder, options)
        return
    with TemporaryDirectory() as place:
        smollm2.convert(smollm2.fetch(Path(place)), Path(place) / "hf")
        compare(Path(place) / "hf", options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Time both on the model in ``folder``, and print what was found."""
    with open_checkpoint(folder) as source:
        native = language_model(source, Computing("native", options.dtype, options.device))
    theirs = HFLM(
        pretrained=str(folder),
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
    )
    print(f"{torch.get_num_threads()} threads, {options.dtype}, {options.device}")
    found = []
    for name, (kind, asked) in work(options.scale).items():
        if options.only not in name:
            continue
        rounds = []
        for _ in range(options.rounds):
            ours = timed(partial(getattr(native, kind), asked, disable_tqdm=True))
            hf = timed(partial(getattr(theirs, kind), asked, disable_tqdm=True))
            rounds.append((ours, hf))
        walls = [min(each[side][1] for each in rounds) for side in (0, 1)]
        cpus = [min(each[side][2] for each in rounds) for side in (0, 1)]
        apart = difference(rounds[0][0][0], rounds[0][1][0])
        print(
            f"{name:26} native {walls[0]:6.2f} s wall {cpus[0]:6.2f} s CPU   hf {walls[1]:6.2f} "
            f"{cpus[1]:6.2f}   {walls[1] / walls[0]:.2f}x wall {cpus[1] / cpus[0]:.2f}x CPU   "
            f"apart {apart}",
            flush=True,
        )
        found.append({"name": name, "wall": walls, "cpu": cpus, "apart": apart})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
