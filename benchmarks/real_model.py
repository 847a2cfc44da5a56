"""A real model there and back: SmolLM2-135M imported, laid out, grown, proved, and made to speak.

``python benchmarks/real_model.py [FOLDER]`` needs the packages ``gguf``, ``tokenizers``,
``safetensors`` and ``transformers``, 9 GB of disk, and takes some minutes. It stops with exit
code 1 at the first thing that is not as it should be. Weights are bfloat16. Growth multiplies, so
the grown models are float32 where text must come out the same to the letter; in bfloat16, flmgrow
itself judges.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import smollm2
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

LAYOUTS = {"pp2": ("--tp", "1", "--pp", "2"), "tp3": ("--tp", "3")}
LARGER = (
    *("--hidden-size", "768", "--num-attention-heads", "12", "--num-query-groups", "4"),
    *("--ffn-hidden-size", "2048", "--num-layers", "36"),
)
PROMPTS = (
    "The capital of France is",
    "Once upon a time, a little fox",
    "def fibonacci(n):",
)
NEW_TOKENS = 24


def flmgrow(*words: str, code: int = 0) -> str:
    """Run a command that must exit with ``code``; show it and return what it printed."""
    print("$ flmgrow", *words, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "flmgrow", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    require(done.returncode == code, f"exit code {done.returncode}, wanted {code}")
    return done.stdout


def require(condition: bool, what: str) -> None:
    """Stop unless ``condition`` holds."""
    if not condition:
        raise SystemExit(f"WRONG: {what}")


def speak(folder: Path) -> list[str]:
    """Return what the model in ``folder`` continues each prompt with, greedily, in float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    require(not any(info.values()), f"{folder}: {info}")
    texts = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        found = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(found[0]))
    return texts


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two folders hold the same tensors, bit for bit."""
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


def show(texts: list[str]) -> None:
    """Print texts, one a line."""
    for text in texts:
        print("  ", repr(text), flush=True)


def lay_out(hf: Path, place: Path) -> None:
    """Import into several layouts and export again: no bit may change."""
    uneven = flmgrow("import", str(hf), str(place / "x"), "--tp", "2", "--pp", "2", code=2)
    require("possible tensor-parallel sizes: 1, 3" in uneven, "the layouts are not named")
    before = load_file(hf / "model.safetensors")
    for name, layout in LAYOUTS.items():
        checkpoint, back = place / f"ckpt-{name}", place / f"back-{name}"
        flmgrow("import", str(hf), str(checkpoint), *layout)
        flmgrow("export", str(checkpoint), str(back))
        require(same_tensors(before, load_file(back / "model.safetensors")), f"{back}: changed")
        print(f"=> {back.name}: all {len(before)} tensors bit-equal to {hf.name}", flush=True)


def grow(hf: Path, place: Path, method: str, tokens: Path, wanted: list[str]) -> None:
    """Grow in bfloat16, as flmgrow judges it, and in float32, where the text must be the same."""
    how = (*LARGER, "--method", method, "--tp", "2", "--pp", "3", "--max-memory", "500M")
    for dtype in ("bfloat16", "float32"):
        small, large, out = (str(place / f"{kind}-{method}-{dtype}")
                             for kind in ("small", "large", "hf"))  # fmt: skip
        flmgrow("import", str(hf), small, *LAYOUTS["pp2"], "--dtype", dtype)
        flmgrow("expand", small, large, *how)
        flmgrow("verify", small, large, "--tokens", str(tokens))
    flmgrow("export", large, out, "--tokenizer", str(hf), "--shard-size", "500M")
    found = speak(Path(out))
    show(found)
    require(found == wanted, f"{out}: speaks differently")
    print(f"=> the text is the same to the letter, after {method}", flush=True)


def control(hf: Path, place: Path, wanted: list[str]) -> None:
    """Grow by stacking layers, which changes the function: the comparison of texts must see it."""
    stacked = place / "stacked"
    flmgrow("expand", str(hf), str(stacked), "--num-layers", "36", "--method", "depth=stack")
    found = speak(stacked)
    show(found)
    require(found != wanted, "another function speaks the same: the comparison is blind")
    print("=> it speaks differently, as it must", flush=True)


def run(place: Path) -> None:
    """Do all of it in the folder ``place``."""
    hf = place / "smollm2-hf"
    smollm2.convert(smollm2.fetch(place), hf)
    texts = speak(hf)
    show(texts)
    ids = transformers.AutoTokenizer.from_pretrained(hf)(texts[0])["input_ids"]
    tokens = place / "tokens.json"
    tokens.write_text(f"[{ids}]", encoding="utf-8")
    lay_out(hf, place)
    for method in ("zero", "copy"):
        grow(hf, place, method, tokens, texts)
    control(hf, place, texts)
    print("all as it should be")


def main() -> None:
    """Work in the folder that is named, or in one that is removed again."""
    transformers.logging.disable_progress_bar()
    if len(sys.argv) > 1:
        place = Path(sys.argv[1])
        place.mkdir(exist_ok=True)
        run(place)
        return
    with TemporaryDirectory(dir=".", prefix="real-model-") as name:
        run(Path(name))


if __name__ == "__main__":
    main()
