"""Are the outputs of two versions equal, byte for byte, but for what was changed on purpose?

``python benchmarks/compare_outputs.py OLD NEW [FOLDER]`` runs the same commands over the same small
checkpoints with two Pythons (``.venv/bin/python`` of two trees), and compares every file that they
write and every line that they print. What differs must be explained by a rule in
``explained_changes.py``, which names the change; what no rule explains is listed, and the exit code
is 1. The files are kept in FOLDER, if it is given; an interrupted comparison goes on there.

Among them is the demo's schedule with fewer steps: three stages on one, two and four processes, the
model grown twice between them. So what trainings save is compared as well, and every loss.

Fresh values are drawn by the first version in both trees, which the newer one is told to do, so
that weights are compared, too. What the newer tree draws by itself has no counterpart.
"""

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from explained_changes import explanation_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

GROWN = "--hidden-size 24 --ffn-hidden-size 40 --num-layers 6"
COMMANDS = {
    "inspect-legacy": "inspect {flm} --json",
    "inspect-sharded": "inspect {gpt}",
    "inspect-dist": "inspect {dist} --json",
    "inspect-huggingface": "inspect {huggingface}",
    "dry-run": f"expand {{flm}} dry {GROWN} --num-attention-heads 8 --dry-run",
    "reshard": "reshard {flm} resharded --tp 2 --pp 2",
    "reshard-back": "reshard resharded back --tp 1 --pp 1",
    "reshard-sharded": "reshard {gpt} one --tp 1 --pp 1",
    "to-dist": "reshard {flm} as-dist --tp 2 --format torch_dist",
    "from-dist": "reshard {dist} as-legacy --format megatron",
    "dist-to-dist": "reshard {dist} dist-pp2 --pp 2",
    "mask": f"expand {{flm}} masked {GROWN} --num-attention-heads 8 --seed 1",
    "mask-sharded": "expand {gpt} masked-sharded --ffn-hidden-size 40 --ramp-steps 7 --tp 1",
    "mask-dist": "expand {dist} masked-dist --num-layers 6 --ffn-hidden-size 40 --method mask",
    "zero": "expand {flm} zeroed --ffn-hidden-size 40 --num-layers 6 --method zero --seed 2",
    "zero-width": "expand {llama} wide --hidden-size 24 --method zero",
    "copy": f"expand {{llama}} copied {GROWN} --num-attention-heads 16 --method copy --tp 2",
    "vocabulary": "expand {gpt} more-ids --vocab-size 60 --method zero",
    "stack": "expand {flm} stacked --num-layers 8 --method depth=stack",
    "reset": "expand {flm} reset --ffn-hidden-size 40 --optimizer reset",
    "mean": "expand {llama} mean --ffn-hidden-size 40 --method zero --fresh-second-moment mean",
    "bake": "bake masked-sharded baked",
    "import": "import {huggingface} imported --tp 2",
    "import-dist": "import {huggingface} imported-dist --format torch_dist",
    "expand-huggingface": "expand {huggingface} hf-grown --ffn-hidden-size 24 --method zero",
    "export": "export {llama} exported",
    "export-flm": "export {flm} exported-flm",
    "export-shards": "export {llama} exported-shards --shard-size 4K",
    "verify-reshard": "verify {flm} resharded",
    "verify-mask": "verify {flm} masked",
    "verify-copy": "verify {llama} copied",
    "verify-zero": "verify {flm} zeroed",
    "verify-stack": "verify {flm} stacked",
    "verify-export": "verify {llama} exported",
    "inspect-grown": "inspect masked",
    "prepare": "data prepare {text} corpus --tokenizer bytes",
    "prepare-workers": "data prepare {text} corpus-2 --tokenizer bytes --workers 2",
    "refused": "expand {flm} never --hidden-size 10",
    "stages": "run schedule.yaml --out stages",
    "inspect-stages": "inspect stages/03-large/checkpoints --json",
    "verify-stages": "verify stages/02-middle/checkpoints stages/03-large/start",
    "export-stages": "export stages/03-large/checkpoints exported-stages",
}  # fmt: skip
"""Commands by a name. Sources stand in braces, and results lie in the folder of the version."""

STEPS = {"small": 40, "middle": 20, "large": 16}
"""Of the demo's stages, whose masks open within half of them; each saves twice."""

TIMES = re.compile(r" +[^ ]+ tok/s +[^ ]+ TFLOP/s +ETA +[^ \n]+")
"""What a step's line says of wall time."""

OLDER_DRAWS = """
try:
    from flmgrow.operators import draws
    draws.DRAW = 1
except ImportError:
    pass
"""
"""What every Python runs first, those that a command starts as well."""


def make_sources(folder: Path) -> dict[str, Path]:
    """Write small checkpoints of every format, and a text, and return where they lie."""
    from hf_folders import make_folder
    from pico import make_checkpoint
    from pico_dist import make_dist_checkpoint

    from flmgrow.formats.layout.placements import make_layout

    text = folder / "text.jsonl"
    lines = (f"Line {number} of a corpus, {number * number}." for number in range(200))
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    schedule = folder / "schedule.yaml"
    schedule.write_text(yaml.safe_dump(demo(folder / "propositions.jsonl")))
    half: dict[str, Any] = {"dtype": "bfloat16", "optimizer": True}
    return {
        "flm": make_checkpoint(folder / "flm", "flm", dtype="float32", optimizer=True),
        "gpt": make_checkpoint(folder / "gpt", "gpt", make_layout(4, 2, 2), **half),
        "llama": make_checkpoint(folder / "llama", "llama", **half),
        "dist": make_dist_checkpoint(folder / "made", "nemotron", dtype="float32"),
        "huggingface": make_folder(folder / "huggingface"),
        "text": text,
        "schedule": schedule,
    }


def demo(propositions: Path) -> dict[str, Any]:
    """Return the schedule of ``make demo`` with fewer steps, on the corpora of "prepare"."""
    sums = [
        {"text": f"{a} + {a + 7} = {2 * a + 7 + a % 2}", "label": a % 2 == 0} for a in range(60)
    ]
    propositions.write_text("".join(json.dumps(each) + "\n" for each in sums))
    found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    for corpus, name in zip(found["data"]["corpora"], ("corpus", "corpus-2"), strict=True):
        corpus["path"] = name
    found["data"]["teacher"]["files"] = [f"../sources/{propositions.name}"]
    for stage in found["stages"]:
        steps = STEPS[stage["name"]]
        stage["training"]["steps"] = steps
        stage["checkpoint"] = {"every": steps // 2}
        if "growth" in stage:
            stage["growth"]["ramp_steps"] = steps // 2
    return found


def run_all(python: str, place: Path, sources: dict[str, Path]) -> None:
    """Run all commands in ``place``; what each prints is a file there, with its exit code."""
    told = place / "printed"
    told.mkdir(parents=True, exist_ok=True)
    paths = {name: os.path.relpath(path, place) for name, path in sources.items()}
    (place / "schedule.yaml").write_bytes(sources["schedule"].read_bytes())
    (place.parent / "first").mkdir(exist_ok=True)
    (place.parent / "first" / "sitecustomize.py").write_text(OLDER_DRAWS)
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(place.parent / "first"),
    }
    for name, line in COMMANDS.items():
        if (told / f"{name}.txt").exists():
            continue
        words = [python, "-m", "flmgrow", *line.format(**paths).split()]
        done = subprocess.run(
            words, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        output = f"{done.stdout}--- {done.returncode}\n{done.stderr}"
        (told / f"{name}.txt").write_text(output)
        print(f"{place.name}: {name}: {done.returncode}", file=sys.stderr)


def differences(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield where two values of JSON differ: a path such as ``growth.draw``, and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            yield from differences(old.get(key), new.get(key), below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for before, after in zip(old, new, strict=True):
            yield from differences(before, after, f"{path}[]")
    elif old != new:
        yield path, old, new


def content_of(file: Path, place: Path) -> str:
    """Return the text of a file, without wall times and the folder of the version.

    Raises:
        UnicodeDecodeError: It is no text.
    """
    text = file.read_bytes().decode().replace(str(place), "PLACE")
    return TIMES.sub("", text)


def data_in(text: str) -> object:
    """Return JSON, lines of it, or what a command printed as such.

    Raises:
        ValueError: It is something else.
    """
    told, printed, _ = text.partition("\n--- ")
    try:
        return json.loads(told if printed else text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def compared(file: Path, old: Path, new: Path) -> Iterator[str]:
    """Yield what differs in a file of two places: paths of JSON, lines of text, or the whole."""
    before, after = old / file, new / file
    if not (before.is_file() and after.is_file()):
        yield "only in the old version" if before.is_file() else "only in the new version"
        return
    if before.read_bytes() == after.read_bytes():
        return
    try:
        was, now = content_of(before, old), content_of(after, new)
    except UnicodeDecodeError:
        yield f"bytes: {before.stat().st_size} -> {after.stat().st_size}"
        return
    try:
        found = list(differences(data_in(was), data_in(now)))
    except ValueError:
        told = difflib.unified_diff(was.splitlines(), now.splitlines(), lineterm="", n=0)
        yield from (line for line in told if line[:1] in "+-" and line[:3] not in ("+++", "---"))
        return
    yield from (f"{path}: {one!r:.60} -> {other!r:.60}" for path, one, other in found)


def main() -> int:
    """Run both versions, and tell what differs and why."""
    old, new, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(rest[0] if rest else kept).absolute()
        made = folder / "sources" / "made.json"
        if not made.exists():
            made.parent.mkdir(parents=True)
            sources = make_sources(made.parent)
            made.write_text(json.dumps({name: str(path) for name, path in sources.items()}))
        sources = {name: Path(path) for name, path in json.loads(made.read_text()).items()}
        for python, name in ((old, "old"), (new, "new")):
            run_all(str(Path(python).absolute()), folder / name, sources)
        return report(folder / "old", folder / "new")


def report(old: Path, new: Path) -> int:
    """Print how many files are equal, why the others are not, and what nothing explains."""
    files = sorted({p.relative_to(place) for place in (old, new) for p in place.rglob("*")
                    if p.is_file()})  # fmt: skip
    equal, reasons, unexplained = 0, Counter[str](), list[str]()
    for file in files:
        found = list(compared(file, old, new))
        equal += not found
        for difference in found:
            reason = explanation_of(file.as_posix(), difference)
            if reason is None:
                unexplained.append(f"{file}: {difference}")
            else:
                reasons[reason] += 1
    print(f"{equal} of {len(files)} files are equal, byte for byte")
    for reason, count in reasons.most_common():
        print(f"{count:6} differences: {reason}")
    for line in unexplained:
        print(f"NOT EXPLAINED  {line}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
