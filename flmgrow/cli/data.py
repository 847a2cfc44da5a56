"""``flmgrow data``: texts as the tokens that megatron-core trains from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options, report
from flmgrow.cli.running import check_apart, default_workers, progress_bar
from flmgrow.surgery.output import OutputFolder
from flmgrow.trainer.data_prepare import Recipe
from flmgrow.trainer.data_prepare import prepare as prepare_data
from flmgrow.trainer.documents import find_sources
from flmgrow.trainer.tokenizers import open_tokenizer

app = typer.Typer(help="Make tokens of texts.", rich_markup_mode=None)

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SRC...", help="Files .txt or .jsonl, plain, .gz or .zst, or folders of them."
    ),
]
TokenizerName = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="bytes|tiktoken:NAME|FILE",
        help="tiktoken:cl100k_base, a file of ranks (.tiktoken), a tokenizer.json, or bytes.",
    ),
]
EndOfDocument = Annotated[
    str | None,
    typer.Option(
        "--eod", metavar="ID|TOKEN", help="Token that ends documents; the tokenizer's if not given."
    ),
]
Key = Annotated[str, typer.Option("--jsonl-key", help="Where a JSON line has its text.")]
AppendEod = Annotated[
    bool, typer.Option("--append-eod/--no-append-eod", help="End each document with that token.")
]

Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Processes; one per core, up to 16, if not given."),
]


@app.callback()
def _group() -> None:
    """Make tokens of texts."""  # with a single command, typer would make the group that command


@app.command()
def prepare(
    sources: Sources,
    dst: options.Destination,
    tokenizer: TokenizerName,
    eod: EndOfDocument = None,
    jsonl_key: Key = "text",
    append_eod: AppendEod = True,
    workers: Workers = None,
    restart: options.Restart = False,
    as_json: options.AsJson = False,
) -> None:
    """Write texts as a corpus of tokens: data.bin and data.idx, as megatron-core reads them.

    Documents keep their order, and the bytes are the same for every number of workers. A run that
    was stopped is resumed by the same command.

    \b
    Example: flmgrow data prepare wiki.jsonl.zst corpus-en --tokenizer tiktoken:cl100k_base
    """
    found = find_sources(sources)
    for path in sources:
        if path.is_dir():
            check_apart(path, dst)
    recipe = Recipe(open_tokenizer(tokenizer, eod), jsonl_key, append_eod)
    plan = {**recipe.to_json(), "sources": [source.name for source in found]}
    total = sum(source.path.stat().st_size for source in found)
    with OutputFolder(dst, plan, restart=restart) as folder:
        try:
            with progress_bar(total, "reading") as progress:
                manifest = prepare_data(found, recipe, folder, default_workers(workers), progress)
        except BaseException:
            if not folder.finished:
                folder.discard()
            raise
    if as_json:
        print(json.dumps(manifest, indent=1))
        return
    size = report.size(sum(file["size"] for file in manifest["files"]))
    count = f"{manifest['tokens']:,} tokens in {manifest['documents']:,} documents"
    if manifest["documents_without_text"]:
        count += f" ({manifest['documents_without_text']:,} without text left out)"
    vocabulary = f"{tokenizer}, {recipe.tokenizer.vocab_size:,} ids"
    end = f"token {recipe.tokenizer.eod}" if append_eod else "not marked"
    rows = [
        ("wrote", f"{dst}  ({size})"),
        ("corpus", count),
        ("tokenizer", f"{vocabulary}, end of document {end}"),
    ]
    print("\n".join(report.aligned(rows)))
