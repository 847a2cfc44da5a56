"""Proving that two checkpoints are what they say: intact, and the same function.

Each kind of evidence can fail on its own. *Checksums*: every CRC32 in both, and every file against
the manifest. *Optimizer*: step counts and param groups are the source's. *Elements*: growth is
deterministic, so every stored value is derived again from the source and compared bit for bit.
*Function*: both models run through one reference forward on the same tokens. *Gradients* (on
request): which fresh parameters are alive, and whether old ones get the gradients they got.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flmgrow import __version__
from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.durable import write_small
from flmgrow.formats.integrity import verify_files
from flmgrow.formats.manifest_file import (
    MANIFEST,
    Json,
    manifest_of,
    masks_of,
    records_of,
)
from flmgrow.formats.megatron_optimizer import with_optimizer
from flmgrow.formats.reading import Array, Piece, as_bytes
from flmgrow.model.axes import Axis, Box, split
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.surgery.comparison import Difference, Side, compare
from flmgrow.surgery.counted import compare_counted
from flmgrow.surgery.execute import in_order
from flmgrow.surgery.gradients import compare_gradients
from flmgrow.surgery.manifest import encode
from flmgrow.surgery.rebuild import growth_from_manifest
from flmgrow.surgery.states import ModelValues

EXACT = 1e-10
"""Largest difference of logits in float64 where weights are stored exactly."""

ROUNDED = 1e-4
"""Largest difference of logits where float32 weights had to be rounded, or float32 computes."""

OWN_ROUNDING = 5
"""...or this many times the source's own rounding in its dtype, if that is more."""

OWN_ROUNDING_16 = 3
"""The same where weights are stored in 16 bits: reported, not promised."""

DTYPES_BY_PRECISION = ("bfloat16", "float16", "float32", "float64")

ELEMENT_BLOCK = 1 << 20

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


@dataclass(frozen=True)
class Check:
    """One piece of evidence: passed, failed, or only reported (``passed`` None)."""

    name: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, object] = field(default_factory=dict)


def draw_tokens(vocab: int, length: int, seed: int) -> Tensor:
    """Return random ids (2, length) below ``vocab``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (2, length), generator=generator)


def check_tokens(tokens: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Return ``tokens`` as (b, s).

    Raises UsageError for ids or lengths the model cannot take.
    """
    if tokens.ndim == 1:
        tokens = tokens[None]
    config = checkpoint.config
    if tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.is_floating_point():
        raise UsageError(f"tokens of shape {tuple(tokens.shape)}, wanted whole numbers (b, s)")
    if int(tokens.min()) < 0 or int(tokens.max()) >= config.vocab:
        found = f"{int(tokens.min())} to {int(tokens.max())}"
        raise UsageError(f"token ids from {found}, the vocabulary has {config.vocab}")
    if config.positions == "learned" and tokens.shape[1] > config.max_positions:
        raise UsageError(
            f"{tokens.shape[1]} tokens in a row, the model has {config.max_positions} positions"
        )
    return tokens.long()


def _checksums(checkpoint: Checkpoint, manifest: Json | None, progress: Progress) -> Check:
    name = f"checksums of {checkpoint.name}"
    try:
        sums = checkpoint.contents.verify(progress)
        records = [] if manifest is None else records_of(manifest)
        verify_files(checkpoint.path, records)
    except BadCheckpointError as error:
        return Check(name, False, error.message)
    *kinds, last = (*sums, "xxh3") if records else sums or ("",)
    if not last:
        return Check(name, None, "it keeps none")
    named = f"{', '.join(kinds)} and {last}" if kinds else last
    count = checkpoint.contents.count
    return Check(
        name, True, f"{named} of {count} {'file matches' if count == 1 else 'files match'}"
    )


def _elements(
    source: Checkpoint, result: Checkpoint, growth: Growth, init_std: float | None, workers: int
) -> Check:
    """Derive every element of the result again from the source, and compare the bits."""
    values = ModelValues(growth, source, init_std)
    if lost := source.readers.keys() - result.readers.keys():
        return Check("elements", False, f"{result.folder}: has no {', '.join(sorted(lost))}")

    def compare_box(state: State, array: Piece, name: str, box: Box) -> tuple[str, int]:
        found = result.readers[state].read(name, box)
        wanted = values.box(state, name, box, found.dtype)
        same = bytes(as_bytes(found)) == bytes(as_bytes(np.ascontiguousarray(wanted)))
        if same:
            return "", box.count
        return f"{array}: {state} of {name} differs in {_place(found, wanted, box)}", box.count

    tasks = (
        partial(compare_box, state, array, segment.tensor, box)
        for state, reader in result.readers.items()
        for array in reader.arrays
        for segment in array.placement.segments()
        for box in split(segment.box, ELEMENT_BLOCK)
    )
    total = 0
    with ThreadPoolExecutor(workers) as pool:
        for difference, count in in_order(pool, tasks, workers + 1):
            if difference:
                return Check("elements", False, difference)
            total += count
    kinds = "values" if len(result.readers) == 1 else f"{', '.join(result.readers)} values"
    return Check("elements", True, f"{total:,} {kinds} derived again from the source: bit-equal")


def _place(found: Array, wanted: Array, box: Box) -> str:
    """Name the first entry that differs, by its logical index."""
    inside = np.argwhere(found.view(f"V{found.itemsize}") != wanted.view(f"V{found.itemsize}"))[0]
    index = [start + int(i) for (start, _), i in zip(box.ranges, inside, strict=True)]
    return f"{index}: {found[tuple(inside)]}, wanted {wanted[tuple(inside)]}"


def _model(result: Checkpoint, growth: Growth) -> Check:
    """The result's arguments must describe the model the growth leads to: a wrong epsilon hides in
    rounding.
    """
    wanted, found = asdict(growth.new), asdict(result.config)
    wrong = [
        f"{name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if wanted[name] != found[name]
    ]
    return Check(
        "model", not wrong, "; ".join(wrong) or "the arguments say what the growth leads to"
    )


def _places(growth: Growth | None) -> dict[int, int]:
    """Where each old layer is in the new model: the first that comes from it."""
    layer_map = growth.maps.get(Axis.LAYER) if growth is not None else None
    places: dict[int, int] = {}
    if layer_map is not None:
        for new, old in enumerate(layer_map.source.tolist()):
            places.setdefault(old, new)
    return places


def _rounded(source: Checkpoint, result: Checkpoint, growth: Growth | None) -> bool:
    """Whether weights were computed and rounded, rather than copied bit for bit."""
    if growth is None or source.dtype != result.dtype:
        return True
    return any(growth.rounds(tensor) for tensor in logical_tensors(growth.new).values())


def _tolerance(source: Side, result: Checkpoint, growth: Growth | None, tokens: Tensor) -> float:
    """What the dtypes allow: exact where nothing was rounded, else a multiple of the source's
    rounding.
    """
    stored = {source.checkpoint.dtype, result.dtype}
    rounded = _rounded(source.checkpoint, result, growth) and stored != {"float64"}
    if source.dtype == torch.float64 and not rounded:
        return EXACT
    coarsest = min(stored, key=DTYPES_BY_PRECISION.index)
    dtype = getattr(torch, coarsest) if rounded else source.dtype
    reference, low = replace(source, dtype=torch.float64), replace(source, dtype=dtype)
    own = compare(reference, low, tokens, {}, 1.0).max_logit
    if dtype in (torch.float16, torch.bfloat16):
        return OWN_ROUNDING_16 * own
    return max(ROUNDED, OWN_ROUNDING * own)


def _function(
    source: Checkpoint, result: Checkpoint, growth: Growth | None, tokens: Tensor, how: Verification
) -> Check:
    """Compare the logits, and judge them by what the dtypes in play allow."""
    first, second = (Side(x, masks_of(x), how.dtype) for x in (source, result))
    tolerance = _tolerance(first, result, growth, tokens)
    difference = compare(first, second, tokens, _places(growth), tolerance)
    numbers = {
        **asdict(difference),
        "tolerance": tolerance,
        "dtype": str(how.dtype).removeprefix("torch."),
        "stored_dtypes": [source.dtype, result.dtype],
        "tokens": tokens.numel(),
    }
    equal = difference.max_logit <= tolerance
    return Check("function", equal, _describe(difference, tolerance, how.dtype), numbers)


def _gradients(
    source: Checkpoint, result: Checkpoint, growth: Growth | None, tokens: Tensor
) -> Check:
    """Compare gradients.

    Masks at 0 are opened by one step of their ramp, so that fresh entries show.
    """
    if growth is None:
        return Check("gradients", None, "not compared: the result did not grow from this source")
    masks = masks_of(result)
    found = compare_gradients(source, result, growth, masks, tokens)
    detail = str(found)
    if any(mask.value == 0.0 for mask in masks.values()):
        opened = {d: mask.at(mask.value or 1 / mask.ramp_steps) for d, mask in masks.items()}
        later = compare_gradients(source, result, growth, opened, tokens)
        detail += f" (one ramp step on: {later.alive / max(1, later.fresh):.1%})"
    return Check("gradients", None, detail, asdict(found))


def _describe(difference: Difference, tolerance: float, dtype: torch.dtype) -> str:
    where = ""
    if difference.max_logit > tolerance and difference.first_layer is not None:
        layer = difference.first_layer
        where = f"; first differs {'in the embedding' if layer < 0 else f'after layer {layer}'}"
    return (
        f"max |dlogit| {difference.max_logit:.2e} of {difference.largest_logit:.3g} "
        f"(allowed {tolerance:.1e}, computed in {str(dtype).removeprefix('torch.')}), "
        f"dloss {difference.loss_difference:.1e}, "
        f"argmax agrees on {difference.argmax_agreement:.2%}{where}"
    )


def verify(source: Checkpoint, result: Checkpoint, how: Verification) -> list[Check]:
    """Return the evidence on whether ``result`` computes what ``source`` does.

    Elements are derived again only if the result's manifest says that it came from this source.
    """
    manifest = manifest_of(result)
    checks = []
    if how.checksums:
        for checkpoint in (source, result):
            checks.append(_checksums(checkpoint, manifest_of(checkpoint), how.progress))
        if any(check.passed is False for check in checks):
            return checks
    growth = None
    if manifest is not None and manifest["source"]["digest"] == source.contents.digest():
        growth = growth_from_manifest(source, manifest)
        checks.append(_model(result, growth))
        if manifest["optimizer"] not in ("none", "dropped"):
            source, result = with_optimizer(source), with_optimizer(result)
            same, detail = compare_counted(source.optimizer, result.optimizer, growth)
            checks.append(Check("optimizer", same, detail))
        if how.elements:
            init_std = manifest["options"].get("init_std")
            checks.append(_elements(source, result, growth, init_std, how.workers))
    else:
        detail = "its manifest names another source" if manifest else "it has no manifest"
        checks.append(Check("elements", None, f"not derived again: {detail}"))
    tokens = how.tokens
    if tokens is None:
        tokens = draw_tokens(source.config.vocab, min(32, source.config.max_positions), how.seed)
    tokens = check_tokens(tokens, source)
    checks.append(_function(source, result, growth, tokens, how))
    if how.gradients:
        checks.append(_gradients(source, result, growth, tokens))
    return checks


def receipt(source: Checkpoint, checks: Sequence[Check]) -> Json:
    """Return what verification found, as plain data for the result's manifest."""
    return {
        "flmgrow": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "source": source.name,
        "source_digest": source.contents.digest(),
        "equal": all(check.passed is not False for check in checks),
        "checks": [
            {"name": c.name, "passed": c.passed, "detail": c.detail, **c.numbers} for c in checks
        ],
    }


def write_receipt(result: Checkpoint, content: Json) -> bool:
    """Put the receipt into the result's manifest; return False if there is no manifest."""
    manifest = manifest_of(result)
    if manifest is None:
        return False
    write_small(result.path / MANIFEST, encode({**manifest, "receipt": content}))
    return True
