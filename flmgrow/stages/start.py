"""Starting a schedule from an existing checkpoint.

A run may begin with a model that exists, and its sizes are that model's, unless the first stage
grows it at once. It is laid out for that stage, in a folder of the run's own, and that it still
computes the same is verified: from there on it is treated as what grows between two stages is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flmgrow.errors import UsageError
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.opening import open_checkpoint
from flmgrow.hub.names import hub_name, is_on_hub
from flmgrow.hub.reading import fetch
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Fresh, Mask
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.checkpoint.opening import begins_anew, said_of
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import in_words
from flmgrow.trainer.stage.model import ModelSection, contradictions
from flmgrow.trainer.stage.section import Section

HINT = "such as start: models/llama, or start: hf://ORG/NAME"


@dataclass(frozen=True, eq=False)
class Start:
    """The model that a run begins with.

    ``place`` is where it is, as a command takes it. Counting begins at ``iteration``, which is 0
    where only weights are taken (``anew``). ``imported``: it is a Hugging Face folder.
    ``max_positions`` is the length of texts that it is wanted for, where that was said. ``masks``
    are those that it has not opened, and ``fresh`` is what its last growth made.
    """

    place: str
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    vocab_multiple: int
    masks: Mapping[Dimension, Mask]
    iteration: int
    anew: bool
    imported: bool
    max_positions: int | None
    fresh: Fresh = field(default_factory=dict)

    @property
    def section(self) -> ModelSection:
        """The model as a stage file describes it."""
        return ModelSection.of(self.config, self.vocab_multiple)


class StartFile(Section):
    """What a run's folder keeps of how its first stage begins."""

    start: str
    begin: Literal["anew", "continue"]
    tp: int
    pp: int
    vpp: int
    pipeline_layers: list[int] | None = None
    format: str

    @classmethod
    def of(cls, start: Start, stage: StageFile) -> "StartFile":
        """Return it for the stage that begins with ``start``."""
        layout = stage.layout
        return cls(
            start=start.place,
            begin="anew" if start.anew else "continue",
            tp=layout.tp,
            pp=layout.pp,
            vpp=layout.vpp,
            pipeline_layers=layout.pipeline_layers,
            format=stage.checkpoint.format,
        )


def with_start(own: Json) -> Json:
    """Return what a first stage says, the ``checkpoint.load`` of a stage file said as its start."""
    checkpoint = own.get("checkpoint")
    if not isinstance(checkpoint, dict) or checkpoint.get("load") is None:
        return own
    load = checkpoint["load"]
    if own.get("start") not in (None, load):
        raise UsageError(
            f"checkpoint.load: is {load!r:.60}, but start is {own['start']!r:.60}",
            "they say the same: leave one of the two out",
        )
    rest = {key: value for key, value in checkpoint.items() if key != "load"}
    return {**own, "checkpoint": rest, "start": load}


def start_of(own: Mapping[str, Any], stage: StageFile, folder: Path) -> Start | None:
    """Return the model that a stage says it begins with, None if it says none.

    A path is seen from ``folder``.

    Raises:
        UsageError: What was asked for cannot be.
        FlmgrowError: What opening it raises.
    """
    said = own.get("start")
    if said is None:
        return None
    if not isinstance(said, str) or not said:
        raise UsageError(
            Text("start: is ", Found(f"{said!r:.60}")),
            HINT,
            wanted="a folder, or a model on the Hub",
        )
    on_hub = is_on_hub(Path(said))
    place = (
        str(hub_name(Path(said))) if on_hub else str(_seen_from(folder, Path(said).expanduser()))
    )
    path = fetch(hub_name(Path(said)))[0] if on_hub else Path(place)
    with in_words():
        anew = begins_anew(stage.checkpoint, path)
        with open_checkpoint(path, None, said_of(stage)) as checkpoint:
            return Start(
                place,
                checkpoint.config,
                checkpoint.layout,
                checkpoint.padded_vocab,
                checkpoint.vocab_multiple,
                masks_of(checkpoint),
                0 if anew else checkpoint.iteration or 0,
                anew,
                checkpoint.format == "huggingface",
                stage.model.max_position_embeddings,
                fresh_of(checkpoint),
            )


def _seen_from(folder: Path, path: Path) -> Path:
    """Return ``path`` below an absolute ``folder``, without going down and up again.

    A link is kept: what is above it is not what is above the folder that it leads to.
    """
    while path.parts[:1] == ("..",) and not folder.is_symlink():
        folder, path = folder.parent, Path(*path.parts[1:])
    return folder / path


def check_agrees(section: ModelSection, start: Start) -> None:
    """Raise UsageError, naming each difference, if a schedule says otherwise than its start."""
    if differing := contradictions(section, start.config):
        raise UsageError(
            f"model: of {start.place} {'; '.join(differing)}",
            "leave the model out: all of it follows from there; to grow it at once, give the first "
            "stage a growth: section beside the sizes",
        )
