"""``flmgrow data``: texts as the tokens that megatron-core trains from."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.commands import PanelledCommand, PlainGroup
from flmgrow.cli.data_looking import show, stats
from flmgrow.cli.printing import in_columns, json_text, note
from flmgrow.cli.progress import progress_bar
from flmgrow.errors import OutputExistsError, StorageError, printable
from flmgrow.model.wording import size
from flmgrow.planned import check_apart, default_workers
from flmgrow.storage.hidden import clear_leftovers
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data import prepared
from flmgrow.trainer.data.compressed import USUAL_WINDOW, window_of
from flmgrow.trainer.data.parts import ENDS, Recipe
from flmgrow.trainer.data.prepare import AllowedLoss
from flmgrow.trainer.data.prepare import prepare as prepare_data
from flmgrow.trainer.data.sources import Sources, find_sources, left_out_line
from flmgrow.trainer.data.tokenizers import open_tokenizer

app = typer.Typer(
    help="Make tokens of texts, and look at them.",
    cls=PlainGroup,
    add_completion=False,
    rich_markup_mode=None,
)

SourcePaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="SRC...",
        help="Files .txt, .jsonl or .json, plain, .gz, .zst, .xz or .bz2, or .parquet, or folders.",
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
Key = Annotated[
    str,
    typer.Option(
        "--jsonl-key", "--key", help="Where a JSON line or a row has its text, such as meta.text."
    ),
]
AppendEod = Annotated[
    bool, typer.Option("--append-eod/--no-append-eod", help="End each document with that token.")
]

MaxBadLines = Annotated[
    int,
    typer.Option(
        "--max-bad-lines", min=0, help="Leave out as many lines or files that are no text."
    ),
]
MaxLost = Annotated[
    float,
    typer.Option(
        "--max-lost", min=0, max=1, help="Share of characters that the tokenizer may lose."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Processes; one per core, up to 16, if not given."),
]


@app.command(cls=PanelledCommand)
def prepare(
    sources: SourcePaths,
    dst: options.Destination,
    tokenizer: TokenizerName,
    eod: EndOfDocument = None,
    jsonl_key: Key = "text",
    append_eod: AppendEod = True,
    max_bad_lines: MaxBadLines = 0,
    max_lost: MaxLost = AllowedLoss.lost,
    workers: Workers = None,
    restart: options.Restart = False,
    as_json: options.AsJson = False,
) -> None:
    """Write texts as a corpus of tokens: data.bin and data.idx, as megatron-core reads them.

    Documents keep their order, and the bytes are the same for every number of workers. What is not
    read, left out or lost is told, and kept in flmgrow-data.json. A run that was stopped is resumed
    by the same command; one that was finished is found, and nothing is done.

    \b
    Example: flmgrow data prepare wiki.jsonl.zst corpus-en --tokenizer tiktoken:cl100k_base
    """
    found = find_sources(sources)
    for path in sources:
        if path.is_dir():
            check_apart(path, dst)
    recipe = Recipe(open_tokenizer(tokenizer, eod), jsonl_key, append_eod)
    _tell_of(found)
    plan = {**recipe.to_json(), "sources": [source.name for source in found.files]}
    total = sum(source.path.stat().st_size for source in found.files)
    limits, processes = AllowedLoss(max_bad_lines, max_lost), default_workers(workers)
    with progress_bar(total, "reading") as progress:
        there = prepared.found(dst, found, recipe, limits, progress)
    if there is None:
        with OutputFolder(dst, plan, restart=restart) as folder:
            if folder.note:
                note(folder.note)
            try:
                with progress_bar(total, "reading") as progress:
                    manifest = prepare_data(found, recipe, folder, processes, progress, limits)
            except BaseException:
                if not folder.finished:
                    folder.discard()
                raise
    else:
        manifest = there
        with suppress(OSError, StorageError, OutputExistsError):
            clear_leftovers(dst)
    if as_json:
        print(json_text(manifest))
        return
    nbytes = size(sum(file["size"] for file in manifest["files"]))
    vocabulary = f"{tokenizer}, {recipe.tokenizer.vocab_size:,} ids"
    end = f"token {recipe.tokenizer.eod}" if append_eod else "not marked"
    rows = [
        ("wrote" if there is None else "found", f"{dst}  ({nbytes})"),
        ("read", _read(found, manifest)),
        ("corpus", _corpus(manifest)),
        ("tokenizer", f"{vocabulary}, end of document {end}"),
        *((kind, printable(what)) for kind, what in _missing(manifest)),
    ]
    print("\n".join(in_columns(rows)))


app.command(cls=PanelledCommand)(show)
app.command(cls=PanelledCommand)(stats)


def _tell_of(sources: Sources) -> None:
    """Say what is not read, and what takes more memory than one may think."""
    if line := left_out_line(sources):
        note(f"not read: {line}")
    windows = {s: window_of(s.path) for s in sources.files if s.compression == ".zst"}
    largest = max(windows, key=windows.__getitem__, default=None)
    if largest is not None and windows[largest] > USUAL_WINDOW:
        need = size(windows[largest])
        note(f"{largest.path}: takes {need} of memory to decompress")


def _read(sources: Sources, manifest: Json) -> str:
    count = f"{len(sources.files):,} {'file' if len(sources.files) == 1 else 'files'}"
    empty = sum(not said["size"] for said in manifest["sources"])
    rest = [f"{n:,} {what}" for n, what in ((empty, "empty"), (len(sources.left_out), "not")) if n]
    return count + (f" ({', '.join(rest)})" if rest else "")


def _corpus(manifest: Json) -> str:
    count = f"{manifest['tokens']:,} tokens in {manifest['documents']:,} documents"
    if manifest["documents_without_text"]:
        count += f" ({manifest['documents_without_text']:,} without text left out)"
    return count


def _missing(manifest: Json) -> Iterator[tuple[str, str]]:
    """Yield what is in the text and not in the corpus, each kind with its first place."""
    bad = manifest["bad_lines"].items()
    if bad:
        yield ("left out", ", ".join(f"{e['count']:,} {kind} ({e['first']})" for kind, e in bad))
    for kind, entry in manifest["missing"].items():
        share = entry["count"] / max(1, manifest["characters"])
        of = "documents" if kind == ENDS else f"characters ({share:.2g} of all)"
        yield (kind, f"{entry['count']:,} {of}, first {entry['first']}")
