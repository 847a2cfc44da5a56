"""The paper's whole course at a size that runs in minutes: train, grow, verify, train on.

One schedule, ``configs/tiny.yaml``, trains three stages on one, two and four processes. Between
them the model grows along width, heads, FFN and depth, Adam's state with it, and is laid out for
the next stage's ranks; a growth that changed the function would stop the run. Then two checkpoints
that must be, and are, refused. Last, what the stages can do, beside each other: in a table, in a
picture, and in their own words; and what FreeLM's teacher signal teaches. Everything happens on the
CPU, in ``demo-run/``, which is made anew each time. ``make demo`` runs this.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("demo-run")
DATA, TINY, TAUGHT = RUN / "data", RUN / "tiny", RUN / "taught"
SMALL, LARGE = TINY / "01-small" / "checkpoints", TINY / "03-large" / "checkpoints"
GROWN, STACKED, DAMAGED = TINY / "03-large" / "start", RUN / "stacked", RUN / "damaged"
SCHEDULE, TEACHER = "configs/tiny.yaml", "configs/tiny-teacher.yaml"
STAGES = ("01-small", "02-middle", "03-large")


class DemoError(Exception):
    """A step did not end as it must."""


def main() -> None:
    """Run every step, and stop at the first that does not end as it must."""
    os.chdir(ROOT)
    shutil.rmtree(RUN, ignore_errors=True)
    begin = time.monotonic()
    try:
        prepare()
        run()
        look()
        refuse_what_is_wrong()
        compare()
        teach()
        losses = [validation(stage) for stage in STAGES]
    except DemoError as error:
        sys.exit(f"\nThe demo failed: {error}")
    told = ", ".join(f"{loss:.3f}" for loss in losses)
    print(SUMMARY.format(losses=told, seconds=time.monotonic() - begin))


def prepare() -> None:
    """Make two corpora and some propositions, and tokens of the corpora."""
    say("Two small corpora, English and Chinese, and sums that are true or false.")
    command(f"python examples/demo_data.py {DATA}")
    for language in ("english", "chinese"):
        texts, corpus = DATA / f"{language}.jsonl", DATA / language
        command(f"flmgrow data prepare {texts} {corpus} --tokenizer bytes")


def run() -> None:
    """Train, grow, verify and train on, three stages in all."""
    say("What the schedule will do, before it does anything.")
    command(f"flmgrow run {SCHEDULE} --out {TINY} --dry-run")
    say("Do it: train on one process, grow, verify, train on two, grow, verify, train on four.")
    command(f"flmgrow run {SCHEDULE} --out {TINY}")


def look() -> None:
    """Show where the last checkpoint comes from."""
    say("The last checkpoint knows its ancestors; its masks are open, so it is an ordinary one.")
    command(f"flmgrow inspect {LARGE}")


def refuse_what_is_wrong() -> None:
    """Show that the proof can fail: stacked layers change the function, a flipped bit the file."""
    say("Stack layers, as is often done. It changes the function, and verify must say so.")
    command(f"flmgrow expand {SMALL} {STACKED} --num-layers 4 --method depth=stack")
    command(f"flmgrow verify {SMALL} {STACKED}", expect=1)
    say("Flip one bit of a copy of what the last stage began with. verify must find it.")
    command(f"cp -r {GROWN} {DAMAGED}")
    file = sorted(DAMAGED.glob("iter_*/*.distcp"))[2]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    command(f"flmgrow verify {TINY / '02-middle' / 'checkpoints'} {DAMAGED}", expect=1)


def compare() -> None:
    """Put the stages' scores beside each other, draw them below the loss, let each stage speak."""
    say("What can each stage do? Texts it has not read, and two of the paper's IQ tasks.")
    texts = ",".join(
        f"bits-per-byte:{DATA / name}.jsonl" for name in ("new-english", "new-chinese")
    )
    command(
        f"flmgrow eval {TINY} --tasks {texts},symbolic,iq_full_repeating "
        f"--data {DATA / 'new-propositions.jsonl'} --limit 100 --out {TINY / 'scores'}"
    )
    say("The loss of all stages and their scores, against tokens and floating-point operations.")
    command(f"flmgrow plot {TINY}")
    say("A line from each stage.")
    for stage in STAGES:
        checkpoints = TINY / stage / "checkpoints"
        drawn = "--max-new-tokens 60 --temperature 0.6 --seed 1"
        command(f"flmgrow generate {checkpoints} --prompt 'Return the ' {drawn}")


def teach() -> None:
    """Let the first stage learn from a teacher, and ask it what it was never told."""
    say("Teach the first stage which of two numbers is larger, and ask about others.")
    command(f"flmgrow run {TEACHER} --out {TAUGHT}")
    asked = DATA / "new-comparisons.jsonl"
    command(
        f"flmgrow eval {SMALL} {TAUGHT / '01-taught' / 'checkpoints'} --tasks teacher "
        f"--data {asked} --out {TAUGHT / 'scores'}"
    )


def validation(stage: str) -> float:
    """Return the last validation loss of a stage."""
    lines = (TINY / stage / "metrics.jsonl").read_text().splitlines()
    losses = [record.get("validation_loss") for record in map(json.loads, lines)]
    last: float = [loss for loss in losses if loss is not None][-1]
    return last


def say(text: str) -> None:
    """Head the commands to come."""
    print(f"\n# {text}", flush=True)


def command(line: str, expect: int = 0) -> None:
    """Show a command as one would type it in .venv, run it, and insist on its exit code."""
    print(f"$ {line}", flush=True)
    tools = Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    code = subprocess.run(shlex.split(line), env=environment, check=False).returncode
    if expect:
        print(f"(exit code {code})", flush=True)
    if code != expect:
        raise DemoError(f"exit code {code} instead of {expect} from: {line}")


SUMMARY = """
What was shown, in {seconds:.0f} s:
  - One command trained three stages on 1, 2 and 4 processes; validation losses: {losses}.
  - Between them the model grew along width, heads, FFN and depth to 7 times its parameters, with
    Adam's state, for other ranks, and verify found the same function each time.
  - Masks opened while the larger models trained. The last checkpoint is an ordinary one.
  - The proof can fail: stacked layers and a flipped bit were both found, with exit code 1.
  - Each stage needs fewer bits for texts that it has not read. For questions all are too small;
    what a teacher shows, comparisons of numbers, the smallest learns as a rule.
The run is in demo-run/tiny/, its picture is demo-run/tiny/loss.png."""


if __name__ == "__main__":
    main()
