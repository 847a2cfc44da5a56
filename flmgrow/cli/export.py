"""``flmgrow export``: a checkpoint as a Hugging Face folder; weights stay bit for bit."""

import re
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.parsing import read_small_file, shard_bytes
from flmgrow.cli.reading import SourceOptions
from flmgrow.cli.running import Running, carry_out
from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.companions import TOKENIZER
from flmgrow.hub.card import CardFacts
from flmgrow.hub.evaluation import EvaluationScore, read_scores
from flmgrow.hub.names import push_name
from flmgrow.hub.publication import Publication
from flmgrow.hub.push import Push
from flmgrow.planned import plan_export
from flmgrow.surgery.requests import Files

_HUB = "Model card and Hub"
PushTo = Annotated[
    str | None,
    typer.Option(
        "--push-to",
        metavar="ORG/NAME",
        help="Push the folder to this repository of the Hugging Face Hub, in one commit.",
        rich_help_panel=_HUB,
    ),
]
Private = Annotated[
    bool,
    typer.Option(
        "--private", help="Make the repository private, if it is new.", rich_help_panel=_HUB
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="BRANCH", help="Push to this branch (default main).", rich_help_panel=_HUB
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        metavar="ID",
        help="The Hub's identifier of the licence, such as apache-2.0, for the model card.",
        rich_help_panel=_HUB,
    ),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="Scores for the model card, such as lm-evaluation-harness writes.",
        rich_help_panel=_HUB,
    ),
]

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MOST_EVALUATION_BYTES = 16 << 20


@grouped
@in_ranks
def export(
    src: options.Source,
    dst: options.Destination,
    family: options.Family = None,
    shard_size: options.ShardSize = "5G",
    tokenizer: options.Tokenizer = None,
    keep_code: options.KeepCode = False,
    push_to: PushTo = None,
    private: Private = False,
    revision: Revision = None,
    license: License = None,
    evaluation: Evaluation = None,
    iteration: options.Iteration = None,
    dtype: options.Dtype = None,
    *,
    reading: SourceOptions,
    running: Running,
) -> None:
    """Write a model as a Hugging Face folder that transformers loads, and push it on request.

    Only the model: optimizer state and vocabulary padding are left out, with a note. A model card
    is made from the manifests. A push that broke off goes on with the same command.

    \b
    Example: flmgrow export ckpt-51b flm-51b-hf --dtype bfloat16
    """
    size = shard_bytes(shard_size)
    files = Files(dtype=dtype, shard_size=size, family=family, keep_code=keep_code)
    scores = _scores(evaluation)
    push = _push(push_to, private, revision, keep_code)
    if license is not None and not _LICENSE.fullmatch(license):
        raise UsageError(f"--license {license}: is no identifier", "such as apache-2.0")
    if push is not None and not running.dry_run:
        push.check()
    with reading.open(src, iteration) as source:
        plan = plan_export(source, files, tokenizer)
        facts = CardFacts(
            name=dst.name if push is None else push.name.repository,
            config=plan.model,
            revision="main" if push is None else push.name.revision,
            tokenizer=any(TOKENIZER.fullmatch(file.path) for file in plan.details.files),
            license=license,
            scores=scores,
        )
        carry_out(plan, dst, running, Publication(facts, push))


def _push(push_to: str | None, private: bool, revision: str | None, keep_code: bool) -> Push | None:
    if push_to is not None:
        return Push(push_name(push_to, revision), private, keep_code)
    for option, given in {"--private": private, "--revision": revision is not None}.items():
        if given:
            raise UsageError(f"{option}: nothing is pushed", "add --push-to ORG/NAME")
    return None


def _scores(path: Path | None) -> tuple[EvaluationScore, ...]:
    if path is None:
        return ()
    content = read_small_file("--evaluation", path, _MOST_EVALUATION_BYTES)
    try:
        return read_scores(content, f"--evaluation {path}")
    except BadCheckpointError as error:
        raise UsageError.of(error) from None
