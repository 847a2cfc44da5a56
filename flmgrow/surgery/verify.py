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

from dataclasses import dataclass, replace
from functools import partial

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
from flmgrow.storage.ranks import ALONE, Ranks
from flmgrow.surgery.comparison import check_sizes
from flmgrow.surgery.evidence.arguments import check_iteration
from flmgrow.surgery.evidence.carried import check_carried
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.checksums import check_sums, listed_files
from flmgrow.surgery.evidence.copies import check_copies
from flmgrow.surgery.evidence.derivation import Effort, evidence_of, recorded_way, undeclared
from flmgrow.surgery.evidence.elements import ELEMENT_BLOCK, Sharing
from flmgrow.surgery.evidence.function import Forward, check_function
from flmgrow.surgery.evidence.manifests import check_manifest
from flmgrow.surgery.evidence.memory import check_memory
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.evidence.sharing import made_by_first
from flmgrow.surgery.evidence.states import with_known_states, with_masters_like
from flmgrow.surgery.evidence.tokens import check_tokens, draw_tokens
from flmgrow.surgery.evidence.training import report_gradients
from flmgrow.surgery.execution import BYTES_PER_ELEMENT
from flmgrow.surgery.replicas import Replicated, replicated_as
from flmgrow.surgery.weights import BLOCK, CPU, weight_bytes
from flmgrow.text import Setting, Text

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
    far each pass over files has come. ``ranks`` share what reads all files, and rank 0 runs the
    models meanwhile, on the ``device``; all come to the same.
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
    ranks: Ranks = ALONE
    device: torch.device = CPU

    def __post_init__(self) -> None:
        hold(self, replicated=replicated_as(self.replicated))
        needed = BASE_MEMORY + MIN_BLOCK * BYTES_PER_ELEMENT * (self.workers + 1)
        if self.max_memory < needed:
            raise UsageError(
                Text(
                    Setting("max_memory"),
                    f" is {self.max_memory >> 20} MiB, {self.workers} workers need at least "
                    f"{-(-needed >> 20)} MiB",
                ),
                "give more memory or fewer workers",
            )

    @property
    def asked(self) -> tuple[object, ...]:
        """What decides on the checks, as plain data; all ranks must want the same."""
        tokens = None if self.tokens is None else self.tokens.tolist()
        what = (self.checksums, self.elements, self.gradients, str(self.replicated))
        return (str(self.dtype), tokens, self.seed, *what)

    @property
    def effort(self) -> Effort:
        """How elements are derived."""
        spare = (self.max_memory - BASE_MEMORY) // (BYTES_PER_ELEMENT * (self.workers + 1))
        sharing = Sharing(self.ranks)
        return Effort(self.elements, self.workers, min(spare, ELEMENT_BLOCK), self.bar, sharing)

    @property
    def forward(self) -> Forward:
        """How models are run."""
        spare = (self.max_memory - BASE_MEMORY) // BYTES_PER_WEIGHT
        return Forward(self.dtype, min(spare, BLOCK), self.bar, self.device)


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
        return check_sums(checkpoint, progress, how.ranks)


def _claims(manifest: Manifest | None, source: Checkpoint) -> bool:
    """Whether a manifest says that what it describes was made from ``source``."""
    return manifest is not None and manifest.source.digest == source.contents.digest()


def _derived(
    source: Checkpoint, result: Checkpoint, how: Verification, function: "_Function"
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
        carried = check_carried(start, result, way.growth, manifest.leaves_out)
        start = with_masters_like(start, result)
        sharing = Sharing(how.ranks, function.cost)
        effort = replace(how.effort, sharing=sharing, meanwhile=function.begin)
        return way.growth, [*copies, carried, *evidence_of(start, result, way, effort)]
    found, lost = with_known_states(result)
    start, also_lost = with_known_states(source) if found.state_readers else (source, [])
    copies = check_copies(start, how.replicated is Replicated.RANK0) + check_copies(found)
    if start.optimizer is None:
        found = result  # weights alone can be compared
    start = with_masters_like(start, found)
    growth, checks = undeclared(start, found, manifest, how.effort)
    return growth, [*copies, *lost, *also_lost, *checks]


class _Function:
    """Runs the models, on rank 0, as soon as the growth is known or when the check is wanted."""

    def __init__(
        self, source: Checkpoint, result: Checkpoint, tokens: Tensor, how: Verification
    ) -> None:
        self._run = partial(check_function, source, result, tokens=tokens, how=how.forward)
        self._ranks = how.ranks
        self._found: Check | None = None
        self.cost = weight_bytes(source) * 3 + weight_bytes(result)
        """About how many bytes are read for it."""

    def begin(self, growth: Growth | None) -> None:
        if self._found is None and self._ranks.world.first:
            self._found = self._run(growth)

    def check(self, growth: Growth | None) -> Check:
        self.begin(growth)
        return made_by_first(lambda: self._found or self._run(growth), self._ranks)


def _tokens(source: Checkpoint, result: Checkpoint, how: Verification) -> Tensor:
    """Return the tokens to run on (b, s).

    Raises:
        UsageError: If the model, or the memory, cannot.
    """
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

    If one of them is not intact, nothing else is looked at.

    Raises:
        UsageError: Before all else, for tokens that the model or the memory cannot take, and for a
            result that is smaller than the source.
    """
    check_sizes(source, result)
    tokens = _tokens(source, result, how)
    checks = _integrity(source, result, how)
    if any(check.passed is False for check in checks):
        return checks
    function = _Function(source, result, tokens, how)
    growth, found = _derived(source, result, how, function)
    checks += found
    checks.append(function.check(growth))
    if how.gradients:
        make = partial(report_gradients, source, result, growth, tokens)
        checks.append(made_by_first(make, how.ranks))
    return checks
