"""Proving that two checkpoints are what they say: intact, and the same function.

Each kind of evidence can fail on its own, and has a file of its own in ``evidence/``. *Checksums*:
every CRC32 in both, and every file against the manifest. *Manifest*: against its own sum.
*Copies*: what several ranks hold agrees. *Model*: the arguments are what the growth leads to.
*Optimizer*: step counts and param groups are the source's. *Carried*: so is what lies beside
weights and optimizer. *Elements*: growth is deterministic, so
every stored value is derived again from the source and compared bit for bit. *Function*: both
models run through one reference forward on the same tokens. *Gradients* (on request): which fresh
parameters are alive, and whether old ones get the gradients they got.

What is not there is said, too (:class:`flmgrow.surgery.evidence.check.Verdict`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.opening import with_optimizer
from flmgrow.model.tensors import parameter_count
from flmgrow.operators.choices import hold
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.arguments import check_iteration
from flmgrow.surgery.evidence.carried import check_carried
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.checksums import check_sums, listed_files
from flmgrow.surgery.evidence.copies import check_copies
from flmgrow.surgery.evidence.derivation import Effort, evidence_of, recorded_way, undeclared
from flmgrow.surgery.evidence.elements import ELEMENT_BLOCK
from flmgrow.surgery.evidence.function import Forward, check_function
from flmgrow.surgery.evidence.manifests import check_manifest
from flmgrow.surgery.evidence.memory import check_memory
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.evidence.states import with_known_states
from flmgrow.surgery.evidence.tokens import check_tokens, draw_tokens
from flmgrow.surgery.evidence.training import report_gradients
from flmgrow.surgery.execute import BYTES_PER_ELEMENT
from flmgrow.surgery.replicas import Replicated, replicated_as
from flmgrow.surgery.weights import BLOCK

BASE_MEMORY = 400 << 20
"""What the process needs before the first block: interpreter, torch, headers."""

BYTES_PER_WEIGHT = 24
"""Peak bytes of an element of a weight that the forward reads: stored, float32 and float64."""

MIN_BLOCK = 1 << 14
_LARGE = 2e9


@dataclass(frozen=True)
class Verification:
    """How to verify.

    ``dtype`` is the dtype to compute in; tokens are drawn unless given, (b, s). ``replicated`` is
    ``check``, or ``rank0`` if copies in the source may have drifted apart. ``max_memory`` is in
    bytes; tokens that are given, and gradients, are refused if they need more. ``bar`` shows how
    far each pass over files has come.
    """

    dtype: torch.dtype = torch.float64
    tokens: Tensor | None = None
    seed: int = 0
    checksums: bool = True
    elements: bool = True
    gradients: bool = False
    workers: int = 1
    replicated: Replicated = Replicated.CHECK
    max_memory: int = 1 << 30
    bar: Bar = no_bar

    def __post_init__(self) -> None:
        hold(self, replicated=replicated_as(self.replicated))
        needed = BASE_MEMORY + MIN_BLOCK * BYTES_PER_ELEMENT * (self.workers + 1)
        if self.max_memory < needed:
            raise UsageError(
                f"--max-memory is {self.max_memory >> 20} MiB, {self.workers} workers need at "
                f"least {-(-needed >> 20)} MiB",
                "give more memory or fewer workers",
            )

    @property
    def effort(self) -> Effort:
        """How elements are derived."""
        spare = (self.max_memory - BASE_MEMORY) // (BYTES_PER_ELEMENT * (self.workers + 1))
        return Effort(self.elements, self.workers, min(spare, ELEMENT_BLOCK), self.bar)

    @property
    def forward(self) -> Forward:
        """How models are run."""
        spare = (self.max_memory - BASE_MEMORY) // BYTES_PER_WEIGHT
        return Forward(self.dtype, min(spare, BLOCK), self.bar)


def computing_dtype(source: Checkpoint, result: Checkpoint) -> torch.dtype:
    """Return the dtype to compute in: float64, or float32 for models of over 2e9 parameters."""
    largest = max(parameter_count(each.config) for each in (source, result))
    return torch.float64 if largest <= _LARGE else torch.float32


def _integrity(source: Checkpoint, result: Checkpoint, how: Verification) -> list[Check]:
    """Return what says that both checkpoints are as they were written."""
    checks: list[Check] = []
    for checkpoint in (source, result):
        if how.checksums:
            checks.append(_checksums(checkpoint, how))
        checks += check_iteration(checkpoint)
    if not how.checksums:
        checks.append(Check("checksums", None, "skipped", missing="skipped"))
    return checks + check_manifest(source) + check_manifest(result)


def _checksums(checkpoint: Checkpoint, how: Verification) -> Check:
    total = checkpoint.nbytes * (1 + len(listed_files(checkpoint)))
    with how.bar(total, f"checking {checkpoint.name}") as progress:
        return check_sums(checkpoint, progress)


def _claims(manifest: Manifest | None, source: Checkpoint) -> bool:
    """Whether a manifest says that what it describes was made from ``source``."""
    return manifest is not None and manifest.source.digest == source.contents.digest()


def _derived(
    source: Checkpoint, result: Checkpoint, how: Verification
) -> tuple[Growth | None, list[Check]]:
    """Return the growth that made ``result`` from ``source``, if known, and what speaks for it."""
    manifest = manifest_of(result)
    if manifest is not None and _claims(manifest, source):
        kept = manifest.has_optimizer
        start = with_optimizer(source) if kept else source
        result = with_optimizer(result)
        way = recorded_way(source, manifest)
        drifted = Replicated.RANK0 in (how.replicated, manifest.options.replicated)
        copies = check_copies(start, drifted) + check_copies(result)
        carried = check_carried(start, result, way.growth, manifest.dropped)
        return way.growth, [*copies, carried, *evidence_of(start, result, way, how.effort)]
    found, lost = with_known_states(result)
    start, also_lost = with_known_states(source) if found.state_readers else (source, [])
    copies = check_copies(start, how.replicated is Replicated.RANK0) + check_copies(found)
    if start.optimizer is None:
        found = result  # weights alone can be compared
    growth, checks = undeclared(start, found, manifest, how.effort)
    return growth, [*copies, *lost, *also_lost, *checks]


def _tokens(source: Checkpoint, result: Checkpoint, how: Verification) -> Tensor:
    """Return the tokens to run on (b, s). Raises UsageError if the model, or the memory, cannot."""
    tokens = how.tokens
    if tokens is None:
        tokens = draw_tokens(source.config.vocab, min(32, source.config.max_positions), how.seed)
    tokens = check_tokens(tokens, source)
    if how.gradients or how.tokens is not None:
        block = how.forward.block
        spare = how.max_memory - BASE_MEMORY - (0 if how.gradients else block * BYTES_PER_WEIGHT)
        configs = source.config, result.config
        check_memory(configs, tokens, how.dtype.itemsize, block, how.gradients, max(spare, 0))
    return tokens


def verify(source: Checkpoint, result: Checkpoint, how: Verification) -> list[Check]:
    """Return the evidence on whether ``result`` computes what ``source`` does.

    If one of them is not intact, nothing else is looked at. Raises UsageError, before all else, for
    tokens that the model or the memory cannot take.
    """
    tokens = _tokens(source, result, how)
    checks = _integrity(source, result, how)
    if any(check.passed is False for check in checks):
        return checks
    growth, found = _derived(source, result, how)
    checks += found
    checks.append(check_function(source, result, growth, tokens, how.forward))
    if how.gradients:
        checks.append(report_gradients(source, result, growth, tokens))
    return checks
