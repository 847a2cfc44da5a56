"""``flmgrow.json``: what a checkpoint is, where it came from, how it grew, and what it must equal.

It lies in every output folder and is written last. Later commands read it
(:mod:`flmgrow.formats.history.manifest`): the trainer for masks, ``verify`` for what to compare,
``inspect`` for the family tree. It names no path of the machine it was written on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from flmgrow import __version__
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.history.manifest import (
    base_output,
    encode,
    family,
    manifest_of,
    training_of,
)
from flmgrow.formats.history.manifest_value import (
    DROPPED,
    NO_OPTIMIZER,
    VERSION,
    GrowthRecord,
    LagsSaid,
    Manifest,
    Options,
    Origin,
)
from flmgrow.formats.history.training_state import Carried
from flmgrow.formats.layout.lags import NO_LAGS
from flmgrow.formats.megatron.arguments.model import tokens_seen
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.torch_file.objects import namespace
from flmgrow.model.masks import Fresh, fresh_to_json
from flmgrow.operators.growth import Growth
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.content_sum import SUM
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.plan import GrowthPlan
from flmgrow.surgery.plan_text import source_runs
from flmgrow.text import COMMAND_LINE, render

_LATER = ("drift", "files", "growth", "manifest_version", "receipt", "source", SUM)
"""Parts that a plan does not fix, or that are compared in their own way."""


def identity_of(plan: GrowthPlan, options: Options) -> Json:
    """Return what makes two runs the same run: resuming needs all of it unchanged."""
    growth = plan.growth
    return {
        "flmgrow": __version__,
        "source": plan.source.contents.digest(),
        "arguments": dict(plan.source.given),
        "states": plan.source.optimizer.digest if plan.source.optimizer else "",
        "model": asdict(plan.target.config),
        "layout": asdict(plan.target.layout),
        "dtype": plan.target.dtype,
        "format": plan.target.format,
        "torch_dist_version": plan.target.torch_dist_version,
        "huggingface": plan.target.huggingface.identity,
        "methods": dict(growth.methods),
        "axes": {str(axis): source_runs(axis_map) for axis, axis_map in growth.maps.items()},
        "seed": growth.seed,
        "draw": growth.draw,
        "optimizer": _optimizer(plan),
        "fresh_second_moment": growth.fresh_second_moment,
        "options": options.to_json(),
    }


def describe(
    plan: GrowthPlan,
    options: Options,
    files: Sequence[FileRecord],
    spreads: Mapping[str, float],
    drift: Sequence[str],
) -> Manifest:
    """Return the manifest of a finished run. ``spreads`` are the standard deviations drawn with."""
    growth, target = plan.growth, plan.target
    return Manifest(
        manifest_version=VERSION,
        flmgrow=__version__,
        format=target.format,
        iteration=plan.iteration,
        parameters=plan.parameters[1],
        model=asdict(target.config),
        layout=asdict(target.layout),
        padded_vocab=target.padded_vocab,
        dtype=target.dtype or plan.source.dtype,
        source=_origin(plan),
        growth=GrowthRecord(
            methods={str(dimension): method for dimension, method in growth.methods.items()},
            preserves_function=growth.preserves,
            seed=growth.seed,
            request=dict(growth.request),
            axes={str(axis): source_runs(axis_map) for axis, axis_map in growth.maps.items()},
            spreads=dict(spreads),
            draw=growth.draw,
        ),
        masks=growth.masks,
        fresh=fresh_to_json(fresh_after(growth, fresh_of(plan.source))),
        lags=LagsSaid(NO_LAGS if target.optimizer is None else target.optimizer.lags),
        options=options,
        dropped=tuple(item.name for item in plan.dropped),
        dropped_why={item.name: item.why for item in plan.dropped if item.why} or None,
        optimizer=_optimizer(plan),
        training=carried_through(plan.growth, training_of(plan.source)),
        drift=tuple(drift),
        notes=tuple(render(note, COMMAND_LINE) for note in growth.notes),
        files=tuple(replace(file, sha256="") for file in files),
        receipt=None,
    )


def _origin(plan: GrowthPlan) -> Origin:
    """Return what a plan's source is, and comes from."""
    source, parent = plan.source, manifest_of(plan.source)
    return Origin(
        name=source.name,
        hub=source.hub,
        digest=source.contents.digest(),
        arguments=dict(source.given),
        parameters=plan.parameters[0],
        model=asdict(source.config),
        base_output=_base_output(source),
        layout=asdict(source.layout),
        iteration=source.iteration,
        tokens=_tokens(source),
        date=_saved_on(source),
        family=tuple(family(source)),
        receipt=None if parent is None else parent.receipt,
    )


def carried_through(growth: Growth, known: Carried | None) -> Carried | None:
    """Return what training goes on with after a growth, of what was ``known`` before.

    Losses of another function say nothing of this one's.
    """
    if known is None:
        return None
    lost = set() if growth.preserves else {"losses", "loss_batches"}
    return Carried(**known.model_dump(exclude=lost))


def fresh_after(growth: Growth, known: Fresh) -> Fresh:
    """Return what the last growth made: this one, or, as is ``known``, the one before.

    A growth that grows nothing (another layout or format, masks baked) leaves indices as they are.
    """
    return growth.fresh or known


def _base_output(source: Checkpoint) -> float:
    known = base_output(source)
    return source.config.multipliers.output if known is None else known


def _tokens(source: Checkpoint) -> int | None:
    carried = training_of(source)
    if carried is not None:
        return carried.tokens
    arguments = rank_content(source, (0, 0)).get("args")
    return None if arguments is None else tokens_seen(namespace(arguments))


def _saved_on(source: Checkpoint) -> str | None:
    """Return the day (UTC) on which the last file was written; a download's own day says
    nothing.
    """
    if source.hub is not None:
        return None
    last = max(file.stat().st_mtime for file in source.folder.rglob("*") if file.is_file())
    return datetime.fromtimestamp(last, UTC).date().isoformat()


def _optimizer(plan: GrowthPlan) -> str:
    if plan.target.optimizer is not None:
        return plan.growth.moments
    return DROPPED if "optimizer" in plan.source.carried else NO_OPTIMIZER


def tells_of(manifest: Manifest, plan: GrowthPlan, options: Options) -> bool:
    """Whether ``manifest`` is that of a finished run of ``plan``, whatever was learnt since.

    What is compared is what their files say.
    """
    wanted = json.loads(encode(describe(plan, options, [], {}, [])))
    growth = {key: value for key, value in wanted["growth"].items() if key != "spreads"}
    found = manifest.to_json()
    sizes = {file.path: file.size for file in manifest.files}
    return (
        manifest.source.digest == wanted["source"]["digest"]
        and manifest.source.arguments == wanted["source"]["arguments"]
        and all(found["growth"].get(key) == value for key, value in growth.items())
        and all(found.get(key) == wanted[key] for key in wanted.keys() - set(_LATER))
        and sizes == dict(plan.file_sizes)
    )
