"""Proving that two checkpoints are what they say: intact, and the same function.

Each kind of evidence can fail on its own. *Checksums*: every CRC32 in both, and every file against
the manifest. *Optimizer*: step counts and param groups are the source's. *Elements*: growth is
deterministic, so every stored value is derived again from the source and compared bit for bit.
*Function*: both models run through one reference forward on the same tokens. *Gradients* (on
request): which fresh parameters are alive, and whether old ones get the gradients they got.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.manifest_file import manifest_of
from flmgrow.formats.megatron_optimizer import with_optimizer
from flmgrow.surgery.counted import compare_counted
from flmgrow.surgery.evidence.arguments import check_model
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.checksums import check_sums
from flmgrow.surgery.evidence.elements import check_elements
from flmgrow.surgery.evidence.function import check_function
from flmgrow.surgery.evidence.tokens import check_tokens, draw_tokens
from flmgrow.surgery.evidence.training import report_gradients
from flmgrow.surgery.rebuild import growth_from_manifest

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Verification:
    """How to verify.

    ``dtype`` is the dtype to compute in; tokens are drawn unless given, (b, s).
    """

    dtype: torch.dtype = torch.float64
    tokens: Tensor | None = None
    seed: int = 0
    checksums: bool = True
    elements: bool = True
    gradients: bool = False
    workers: int = 1
    progress: Progress = lambda _: None


def verify(source: Checkpoint, result: Checkpoint, how: Verification) -> list[Check]:
    """Return the evidence on whether ``result`` computes what ``source`` does.

    Elements are derived again only if the result's manifest says that it came from this source.
    """
    manifest = manifest_of(result)
    checks = []
    if how.checksums:
        for checkpoint in (source, result):
            checks.append(check_sums(checkpoint, manifest_of(checkpoint), how.progress))
        if any(check.passed is False for check in checks):
            return checks
    growth = None
    if manifest is not None and manifest["source"]["digest"] == source.contents.digest():
        growth = growth_from_manifest(source, manifest)
        checks.append(check_model(result, growth))
        if manifest["optimizer"] not in ("none", "dropped"):
            source, result = with_optimizer(source), with_optimizer(result)
            same, detail = compare_counted(source.optimizer, result.optimizer, growth)
            checks.append(Check("optimizer", same, detail))
        if how.elements:
            init_std = manifest["options"].get("init_std")
            checks.append(check_elements(source, result, growth, init_std, how.workers))
    else:
        detail = "its manifest names another source" if manifest else "it has no manifest"
        checks.append(Check("elements", None, f"not derived again: {detail}"))
    tokens = how.tokens
    if tokens is None:
        tokens = draw_tokens(source.config.vocab, min(32, source.config.max_positions), how.seed)
    tokens = check_tokens(tokens, source)
    checks.append(check_function(source, result, growth, tokens, how.dtype))
    if how.gradients:
        checks.append(report_gradients(source, result, growth, tokens))
    return checks
