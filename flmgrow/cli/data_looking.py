"""``flmgrow data show`` and ``data stats``: what lies in a corpus, and what a step reads."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.printing import harmless, in_columns, json_text
from flmgrow.errors import UsageError
from flmgrow.model.wording import size
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.corpus_files import CorpusFiles, open_corpus_files
from flmgrow.trainer.data.looking import shown_document, statistics_of
from flmgrow.trainer.data.tokenizers import open_tokenizer

Place = Annotated[
    Path,
    typer.Argument(
        metavar="CORPUS|STAGE.yaml",
        help="A corpus that data prepare made, or Megatron's prefix; with --step a stage file.",
    ),
]
CorpusPath = Annotated[
    Path, typer.Argument(metavar="CORPUS", help="What data prepare made, or Megatron's prefix.")
]
TokenizerName = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="bytes|tiktoken:NAME|FILE",
        help="What the corpus was prepared with.",
    ),
]
EndOfDocument = Annotated[
    str | None, typer.Option("--eod", metavar="ID|TOKEN", help="What data prepare was told.")
]
DocumentNumber = Annotated[
    int | None, typer.Option("--document", min=0, help="A document, counted from 0.")
]
SampleNumber = Annotated[
    int | None, typer.Option("--sample", min=0, help="A sample of the corpus, read alone.")
]
StepNumber = Annotated[
    int | None, typer.Option("--step", min=1, help="All samples that this step of a stage reads.")
]
Length = Annotated[int | None, typer.Option("--sequence-length", min=1, help="Tokens of a sample.")]
Seed = Annotated[int, typer.Option("--data-seed", min=0, help="Seed of the order of samples.")]


def show(
    place: Place,
    document: DocumentNumber = None,
    sample: SampleNumber = None,
    step: StepNumber = None,
    tokenizer: TokenizerName = "bytes",
    eod: EndOfDocument = None,
    sequence_length: Length = None,
    data_seed: Seed = 1234,
    as_json: options.AsJson = False,
) -> None:
    """Show a document or a sample of a corpus, or what a step of a stage reads, as text.

    With where it comes from: the corpus, the documents, and which of their tokens.

    \b
    Example: flmgrow data show stage.yaml --step 8412
    """
    if [document, sample, step].count(None) != 2:
        raise UsageError("say one of --document, --sample and --step")
    # megatron-core's order of samples needs megatron-core, which warns of what a CPU lacks.
    warnings.filterwarnings("ignore")
    if step is not None:
        from flmgrow.trainer.samples_read import samples_of_step

        _print(samples_of_step(place, step), as_json)
        return
    spoken = open_tokenizer(tokenizer, eod)
    if document is not None:
        found = shown_document(open_corpus_files(place, spoken, "never"), spoken, document)
    else:
        from flmgrow.trainer.data.looking_samples import sample_of

        if sequence_length is None:
            raise UsageError("--sample: wanted --sequence-length too", "the tokens of a sample")
        assert sample is not None
        found = sample_of(place, spoken, sample, sequence_length, data_seed)
    _print([{"header": found.header, **found.to_json()}], as_json)


def stats(
    corpus: CorpusPath,
    tokenizer: TokenizerName = "bytes",
    eod: EndOfDocument = None,
    sequence_length: Length = None,
    as_json: options.AsJson = False,
) -> None:
    """Count a corpus: documents, tokens, how long documents are, and samples of an epoch.

    \b
    Example: flmgrow data stats corpus-en --sequence-length 2048
    """
    files = open_corpus_files(corpus, open_tokenizer(tokenizer, eod), "never")
    found = statistics_of(files, sequence_length)
    print(json_text(found) if as_json else "\n".join(in_columns(_rows(files, found))))


def _rows(files: CorpusFiles, found: Json) -> list[tuple[str, str]]:
    nbytes = size(found["tokens"] * found["bytes_per_token"])
    empty = found["empty_documents"]
    rows = [
        ("corpus", f"{files.name}  ({nbytes})"),
        ("documents", f"{found['documents']:,}" + (f" ({empty:,} empty)" if empty else "")),
        ("tokens", f"{found['tokens']:,}"),
        (
            "lengths",
            f"{found['shortest']:,} to {found['longest']:,} tokens, mean {found['mean']:,.1f}; "
            f"10 % up to {found['tenth']:,.0f}, half up to {found['median']:,.0f}, "
            f"90 % up to {found['ninetieth']:,.0f}",
        ),
    ]
    if "samples_per_epoch" in found:
        rows.append(
            (
                "samples",
                f"{found['samples_per_epoch']:,} an epoch; "
                f"{found['longer_than_a_sample']:,} documents are longer than one",
            )
        )
    return rows


def _print(found: Iterable[Json], as_json: bool) -> None:
    for each in found:
        if as_json:
            print(json.dumps({key: value for key, value in each.items() if key != "header"}))
        else:
            print(harmless(f"--- {each['header']}\n{each['text']}\n"))
