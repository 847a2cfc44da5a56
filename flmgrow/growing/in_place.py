"""Growing the model of a stage into that of the next one, as ``expand`` between them would.

What a stage begins with that loads a grown checkpoint follows from that file and its manifest. Here
there is neither; both are known in memory, and what the stage begins with is made of that, so that
it is the same to the last bit, and so that the next checkpoint says of its past what it would have
said.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.parts import Member
from flmgrow.formats.layout.placements import Layout
from flmgrow.growing.grown import grown_model
from flmgrow.growing.source import LiveSource, described
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import parameter_count
from flmgrow.operators.growth import Growth
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.surgery.manifest import carried_through, fresh_after
from flmgrow.surgery.padding import stored_vocab
from flmgrow.surgery.plan import growth_of
from flmgrow.surgery.target_file import GrowthRequest, parse_target
from flmgrow.trainer.checkpoint.begin import Begin, GrownInMemory
from flmgrow.trainer.live import LiveModel
from flmgrow.trainer.ranks.agreement import together
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.chain import START
from flmgrow.trainer.stage.file import StageFile, layout_of, positioned
from flmgrow.trainer.stage.keys import in_keys
from flmgrow.trainer.stage.model import contradictions


@dataclass(frozen=True, eq=False)
class PlannedGrowth:
    """A growth, and how what grows is laid out over the same ranks."""

    growth: Growth
    layout: Layout
    padded_vocab: int


class GrowthInPlace:
    """Grows what a stage has trained into what the next one begins with."""

    def check(self, run: RunConfig, stage: StageFile) -> None:
        """Raise UsageError if what ``run`` will have trained cannot become the model of
        ``stage``.
        """
        begin = run.begin
        left = run.stage.masks.after(begin.masks, run.last - begin.iteration)
        _planned(described(run, run.last), stage, left)

    def grow(self, live: LiveModel, stage: StageFile) -> Begin:
        """Return what ``stage`` begins with. On all ranks at once.

        Raises:
            FlmgrowError: On all ranks, for a growth that cannot be.
        """
        began = time.perf_counter()
        source = LiveSource(live)
        old = source.checkpoint
        planned = together(lambda: _planned(old, stage, live.masks))
        growth = planned.growth
        checkpoint = grown_model(source, growth, planned.layout, planned.padded_vocab)
        carried = carried_through(growth, live.carried)
        assert carried is not None
        return Begin(
            checkpoint,
            resumed=False,
            iteration=live.iteration,
            stage_begin=live.iteration,
            carried=carried,
            masks=stage.masks.rising(dict(sorted(growth.masks.items()))),  # as a manifest has them
            family=_family(live, growth),
            grown=GrownInMemory(
                live.run.stage.name,
                live.run.computes_in,
                parameter_count(growth.old),
                _methods(growth),
                time.perf_counter() - began,
                # New ids take a share of every softmax: logits stay, and losses do not.
                growth.preserves and growth.new.vocab == growth.old.vocab,
                live.tried,
            ),
            fresh=fresh_after(growth, live.run.begin.fresh),
        )


def _methods(growth: Growth) -> dict[str, str]:
    return {str(dimension): str(method) for dimension, method in growth.methods.items()}


def _planned(
    source: Checkpoint, stage: StageFile, pending: Mapping[Dimension, Mask]
) -> PlannedGrowth:
    """Return how ``source`` grows into the model of ``stage``.

    Raises:
        UsageError: What was asked for cannot be.
    """
    request = _request_of(stage)
    wanted = request.target()
    with in_keys("growth"):
        vocab = source.config.vocab if wanted.vocab is None else wanted.vocab
        padded = stored_vocab(source, vocab, source.layout.tp, request.padded_vocab_size)
        growth = growth_of(source, wanted, padded, pending)
    config = positioned(stage, growth.new)
    if differing := contradictions(stage.model, config):
        raise UsageError(
            f"model: {'; '.join(differing)}",
            "it is what growth.to makes of the stage before: say in both the same, or leave it out",
        )
    with in_keys("layout"):
        layout = layout_of(stage, config, padded)
    _check_layout(request, layout)
    return PlannedGrowth(growth, layout, padded)


def _check_layout(request: GrowthRequest, layout: Layout) -> None:
    """Raise UsageError if the file of a growth says another layout than the stage has."""
    said = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp}
    for name, size in said.items():
        if getattr(request, name) not in (None, size):
            raise UsageError(
                f"growth.to: {name} is {getattr(request, name)}, in the stage {size}",
                "say the layout in the stage file alone",
            )


def _request_of(stage: StageFile) -> GrowthRequest:
    assert stage.growth is not None
    path = stage.growth.to
    data = read_yaml(path)
    return parse_target({} if data is None else data, str(path))


def _family(live: LiveModel, growth: Growth) -> tuple[Member, ...]:
    """Return the ancestry of a grown model, itself last, as the manifest of a file would."""
    *ancestors, parent = live.family
    itself = Member(
        name=START,
        parameters=parameter_count(growth.new),
        iteration=live.iteration,
        methods=_methods(growth),
    )
    today = datetime.now(UTC).date().isoformat()
    return (*ancestors, parent.changed(date=today), itself)
