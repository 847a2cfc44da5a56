"""A claim of exactness is worth what one can see of it. This is flmgrow in a few steps.

megatron-core trains a tiny model on two tensor-parallel and two pipeline ranks. flmgrow grows it in
every dimension, lays it out for other ranks, and proves that it computes what it did; then
megatron-core says so itself. Last come two checkpoints that must be, and are, refused. Everything
happens on the CPU, in ``demo-run/``, which is made anew each time. ``make demo`` runs this.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("demo-run")
SMALL, LARGE, MOVED = RUN / "small", RUN / "large", RUN / "large-moved"
WITHOUT, WITH = RUN / "without-growth", RUN / "with-growth"
MASKED, BAKED = RUN / "masked", RUN / "baked"
STACKED, DAMAGED = RUN / "stacked", RUN / "damaged"
TOKENS = RUN / "tokens.pt"

TRAINER = "examples/tiny_megatron.py"
GROW_UNITS = "--num-layers 6 --ffn-hidden-size 264 --num-attention-heads 16 --num-query-groups 8"
GROW_ALL = f"--hidden-size 96 {GROW_UNITS}"
STEPS = "--steps 60 --optimizer"
TOLERANCE = 1e-4


class DemoError(Exception):
    """A step did not end as it must."""


def main() -> None:
    """Run every step, and stop at the first that does not end as it must."""
    os.chdir(ROOT)
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    begin = time.monotonic()
    try:
        train()
        grow_and_prove()
        largest = let_megatron_judge()
        go_on_training()
        grow_with_masks()
        refuse_what_is_wrong()
    except DemoError as error:
        sys.exit(f"\nThe demo failed: {error}")
    print(SUMMARY.format(largest=largest, seconds=time.monotonic() - begin))


def train() -> None:
    """Make a checkpoint as a cluster would: one file for each of 2 x 2 ranks."""
    say("megatron-core trains a tiny Llama on English text: TP2 x PP2, four processes, 40 steps.")
    megatron(4, f"train {SMALL} --tp 2 --pp 2 {STEPS} --stop 40 --vocab-multiple 76")
    say("This is what it left.")
    command(f"flmgrow inspect {SMALL}")


def grow_and_prove() -> None:
    """Grow all four dimensions and change the layout in one pass; then change the layout alone."""
    say("Grow width, FFN, heads and depth at once, and lay the result out for TP4 x PP2.")
    command(f"flmgrow expand {SMALL} {LARGE} {GROW_ALL} --method zero --tp 4 --pp 2")
    say("Prove that it is intact, is what was asked for, and computes what the small one did.")
    command(f"flmgrow verify {SMALL} {LARGE}")
    say("Lay it out again, for one tensor rank and three pipeline ranks. No bit changes.")
    command(f"flmgrow reshard {LARGE} {MOVED} --tp 1 --pp 3")
    command(f"flmgrow verify {LARGE} {MOVED}")


def let_megatron_judge() -> float:
    """Return how far megatron-core's logits of the large model are from those of the small one."""
    say(
        "megatron-core loads both, strictly, and reads a page of English: four and eight processes."
    )
    text = topics["assignment"].encode()[: 8 * 64]
    torch.save(torch.tensor(list(text)).view(8, 64), TOKENS)
    logits = []
    for checkpoint, ranks in ((SMALL, 4), (LARGE, 8)):
        result = checkpoint.with_name(f"{checkpoint.name}-logits.pt")
        megatron(ranks, f"logits {checkpoint} {result} --tokens {TOKENS}")
        logits.append(torch.load(result, weights_only=True)["logits"])
    small, large = logits
    # Behind the ids both have, there may be one that only a tokenizer's convention adds.
    largest: float = (small - large[..., : small.shape[-1]]).abs().max().item()
    print(
        f"{small.numel():,} logits of up to {small.abs().max():.1f} differ by at most {largest:.1e}"
    )
    if not largest <= TOLERANCE:
        raise DemoError(f"megatron-core's logits differ by {largest:.1e}")
    return largest


def go_on_training() -> None:
    """Resume the run in both models, the large one with the Adam state that grew with it."""
    say(
        "The optimizer's state grew, too. Take the next step in the small model, then in the large."
    )
    losses = []
    for checkpoint, out, ranks, stop in ((SMALL, WITHOUT, 4, 41), (MOVED, WITH, 3, 60)):
        log = f"{out}.jsonl"
        resume = f"--load {checkpoint} {STEPS} --stop {stop} --report {log}"
        megatron(ranks, f"train {out} {resume}")
        losses.append(json.loads(Path(log).read_text().splitlines()[0])["loss"])
    small, large = losses
    print(f"the losses of step 41 differ by {abs(small - large):.1e}")
    if not abs(small - large) <= TOLERANCE:
        raise DemoError(f"the large run's first loss is {large}, the small one's {small}")


def grow_with_masks() -> None:
    """Grow for a trainer that opens masks, then close the masks into an ordinary checkpoint."""
    say("Grow by masks instead: new units are fully drawn, and closed until training opens them.")
    command(f"flmgrow expand {SMALL} {MASKED} {GROW_UNITS}")
    command(f"flmgrow verify {SMALL} {MASKED}")
    say("For a trainer that knows no masks, put them into the weights.")
    command(f"flmgrow bake {MASKED} {BAKED}")
    command(f"flmgrow verify {SMALL} {BAKED}")


def refuse_what_is_wrong() -> None:
    """Show that the proof can fail: stacked layers change the function, a flipped bit the file."""
    say("Stack layers, as is often done. It changes the function, and verify must say so.")
    command(f"flmgrow expand {SMALL} {STACKED} --num-layers 8 --method depth=stack")
    command(f"flmgrow verify {SMALL} {STACKED}", expect=1)
    say("Flip one bit of a copy of the large checkpoint. verify must find it.")
    command(f"cp -r {LARGE} {DAMAGED}")
    file = sorted(DAMAGED.glob("iter_*/*/model_optim_rng.pt"))[3]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    command(f"flmgrow verify {SMALL} {DAMAGED}", expect=1)


def say(text: str) -> None:
    """Head the commands to come."""
    print(f"\n# {text}", flush=True)


def megatron(ranks: int, arguments: str) -> None:
    """Run the tiny trainer on ``ranks`` processes."""
    command(f"torchrun --standalone --nproc-per-node {ranks} {TRAINER} {arguments}")


def command(line: str, expect: int = 0) -> None:
    """Show a command as one would type it in .venv, run it, and insist on its exit code."""
    print(f"$ {line}", flush=True)
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "OMP_NUM_THREADS": "1",
    }
    code = subprocess.run(shlex.split(line), env=environment, check=False).returncode
    if expect:
        print(f"(exit code {code})", flush=True)
    if code != expect:
        raise DemoError(f"exit code {code} instead of {expect} from: {line}")


SUMMARY = """
What was shown, in {seconds:.0f} s:
  - A checkpoint that megatron-core trained on 2 x 2 ranks grew along width, FFN, heads and depth
    to 3.5 times its parameters, on 4 x 2 ranks, in one pass and without Megatron.
  - verify derived every value again and found the same function. So did megatron-core, which loaded
    the grown checkpoint strictly: logits differ by {largest:.1e} at most, the rounding of float32.
  - Moved to yet another layout, it is the same to the last bit, and the run went on from there with
    the optimizer's state, at the loss the small model would have had.
  - Growth by masks computes the same too, and bakes into an ordinary checkpoint.
  - The proof can fail: stacked layers and a flipped bit were both found, with exit code 1.
The checkpoints are in demo-run/."""


if __name__ == "__main__":
    main()
