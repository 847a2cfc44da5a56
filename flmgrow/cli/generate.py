"""``flmgrow generate``: let a checkpoint speak, in any format and layout, masks at their values."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flmgrow import models
from flmgrow.cli import devices, options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.parsing import read_small_file
from flmgrow.cli.printing import harmless, note
from flmgrow.cli.reading import SourceOptions
from flmgrow.errors import UsageError
from flmgrow.model.devices import device_named, dtype_named
from flmgrow.storage.strict_json import parse_object

_PROMPTS = "What to go on with"
_HOW = "How to go on"
_MOST_PROMPT_BYTES = 64 << 20

Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="A text to go on with; may be given several times. Without any, standard input is.",
        rich_help_panel=_PROMPTS,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help="Texts to go on with: one JSON object on each line, the text under prompt.",
        rich_help_panel=_PROMPTS,
    ),
]
Longest = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Most new tokens.", rich_help_panel=_HOW)
]
Temperature = Annotated[
    float,
    typer.Option(
        help="0 takes the likeliest token; else logits are divided by it, and tokens are drawn.",
        rich_help_panel=_HOW,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="Draw from so many of the likeliest.", rich_help_panel=_HOW),
]
TopP = Annotated[
    float,
    typer.Option(help="Draw from the likeliest that add up to it.", rich_help_panel=_HOW),
]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn.", rich_help_panel=_HOW)]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End before this text; may be given several times.",
        rich_help_panel=_HOW,
    ),
]
Batch = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Texts at a time.", rich_help_panel=devices.COMPUTING),
]  # fmt: skip
AsJson = Annotated[
    bool,
    typer.Option("--json", help="One JSON object for each prompt, on a line of its own."),
]


@grouped
def generate(
    src: options.Source,
    prompt: Prompt = None,
    prompts: Prompts = None,
    tokenizer: devices.Tokenizer = None,
    max_new_tokens: Longest = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    batch_size: Batch = 8,
    dtype: devices.Dtype = None,
    device: devices.Device = None,
    iteration: options.Iteration = None,
    as_json: AsJson = False,
    *,
    reading: SourceOptions,
) -> None:
    """Let a model go on with texts: greedily, or by drawing.

    \b
    Example: flmgrow generate ckpt-16b --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
    """
    texts = _texts(prompt or (), prompts)
    comes = not as_json and len(texts) == 1 and sys.stdout.isatty()
    with reading.open(src, iteration, look_only=True) as source:
        if comes:
            _write(texts[0])
        found = models.generate(
            source,
            texts,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop or (),
            batch_size=batch_size,
            dtype=dtype_named(dtype),
            device=device_named(device),
            noted=note,
            told=(lambda _, text: _write(text)) if comes else None,
        )
    if comes:
        print()
    elif as_json:
        print("\n".join(json.dumps(each.to_json()) for each in found))
    else:
        print(harmless("\n\n".join(each.prompt + each.text for each in found)))


def _write(text: str) -> None:
    print(harmless(text), end="", flush=True)


def _texts(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the prompts; those of the file come last.

    Raises:
        UsageError: If there is none.
    """
    texts = [*given, *(_texts_in(file) if file is not None else ())]
    if not texts and not sys.stdin.isatty():
        texts = [sys.stdin.read()]
    if not any(texts):
        raise UsageError("no prompt", "give --prompt TEXT, --prompts FILE.jsonl, or standard input")
    return texts


def _texts_in(file: Path) -> list[str]:
    content = read_small_file("--prompts", file, _MOST_PROMPT_BYTES)
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        found = parse_object(line, f"{file}:{number}").get("prompt")
        if not isinstance(found, str):
            raise UsageError(f"--prompts {file}:{number}: has no text under the key 'prompt'")
        texts.append(found)
    return texts
