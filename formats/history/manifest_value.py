"""``flmgrow.json`` as a value: what a checkpoint is, where it came from, how it grew.

Its form was checked before (:mod:`flmgrow.formats.history.manifest_schema`); what masks and the
state of training mean is checked here. docs/concepts/manifest.md says what each field means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from flmgrow.formats.checkpoint import HubOrigin
from flmgrow.formats.history.parts import ManifestPart, Member, Receipt, hub_origin
from flmgrow.formats.layout.lags import Lags, lags_from_json, lags_to_json
from flmgrow.model.masks import Dimension, Mask, fresh_from_json, mask_from_json
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.content_sum import SUM
from flmgrow.storage.strict_json import Json

if TYPE_CHECKING:
    from flmgrow.formats.history.training_state import Carried

VERSION = 2

NO_OPTIMIZER, DROPPED = "none", "dropped"
"""What ``optimizer`` says where a result has none: the source had none, or it was left out."""


@dataclass(frozen=True, kw_only=True)
class Origin(ManifestPart):
    """The checkpoint that another was made from. ``digest`` is of its content.

    ``arguments`` are those that were given in the place of its own. ``base_output`` is the output
    multiplier of the model that all growth began with.
    """

    name: str
    hub: HubOrigin | None
    digest: str
    arguments: Mapping[str, object]
    parameters: int
    model: Json
    base_output: float | None
    layout: Json
    iteration: int | None
    tokens: int | None
    date: str | None
    family: tuple[Member, ...]
    receipt: Receipt | None

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the origin that plain data describes."""
        return cls(
            name=data["name"],
            hub=hub_origin(data.get("hub")),
            digest=data["digest"],
            arguments=data.get("arguments", {}),
            parameters=data["parameters"],
            model=data.get("model", {}),
            base_output=data.get("base_output"),
            layout=data.get("layout", {}),
            iteration=data["iteration"],
            tokens=data.get("tokens"),
            date=data.get("date"),
            family=tuple(map(Member.parse, data["family"])),
            receipt=_receipt(data["receipt"]),
            read=data,
        )


@dataclass(frozen=True, kw_only=True)
class GrowthRecord(ManifestPart):
    """How a checkpoint grew: ``request`` is what was asked for, from which all else follows.

    ``axes`` has runs of new indices for each axis that changed. ``spreads`` are the standard
    deviations that fresh entries were drawn with, by tensor and new layer. ``draw`` is the version
    of how they were drawn; a manifest that says none comes from before there was a second one.
    """

    methods: Mapping[str, str]
    preserves_function: bool
    seed: int | None
    request: Json
    axes: Mapping[str, list[Json]]
    spreads: Mapping[str, float]
    draw: int

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the growth that plain data describes."""
        return cls(
            methods=data["methods"],
            preserves_function=data.get("preserves_function", False),
            seed=data.get("seed"),
            request=data["request"],
            axes=data["axes"],
            spreads=data.get("spreads", {}),
            draw=data.get("draw", 1),
            read=data,
        )


@dataclass(frozen=True, kw_only=True)
class Options(ManifestPart):
    """The options that decide on content."""

    replicated: str
    init_std: float | None

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the options that plain data describes."""
        return cls(replicated=data.get("replicated", ""), init_std=data.get("init_std"), read=data)


@dataclass(frozen=True, eq=True)
class LagsSaid:
    """Which parameters Adam has counted less for, as a manifest says it."""

    lags: Lags

    def to_json(self) -> list[Json]:
        """Return them as plain data."""
        return lags_to_json(self.lags)


@dataclass(frozen=True, kw_only=True)
class Manifest(ManifestPart):
    """What ``flmgrow.json`` says. ``xxh3_128`` is the sum that it was read with.

    ``model`` and ``layout`` are plain data, as the version that wrote it knew them. ``training``
    is what goes on through growth of a run of flmgrow's trainer. ``fresh`` are the indices that the
    last growth made, be it this one or one of the source's; None where an earlier version wrote it.
    ``lags`` say of which parameters Adam has counted less, or has no state; None likewise.
    """

    manifest_version: int
    flmgrow: str
    format: str
    iteration: int | None
    parameters: int
    model: Json
    layout: Json
    padded_vocab: int
    dtype: str
    source: Origin
    growth: GrowthRecord
    masks: Mapping[Dimension, Mask]
    fresh: Json | None = None
    lags: "LagsSaid | None" = None
    options: Options
    dropped: tuple[str, ...]
    dropped_why: Mapping[str, str] | None = None
    optimizer: str
    training: "Carried | None"
    drift: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[FileRecord, ...]
    receipt: Receipt | None
    xxh3_128: str | None = None

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the manifest that plain data describes.

        Raises:
            BadCheckpointError: The checkpoint is damaged.
            ValueError: For masks or a state of training that are none.
        """
        masks = data["masks"].items()
        training = data.get("training")
        return cls(
            manifest_version=data["manifest_version"],
            flmgrow=data.get("flmgrow", ""),
            format=data.get("format", ""),
            iteration=data["iteration"],
            parameters=data["parameters"],
            model=data.get("model", {}),
            layout=data.get("layout", {}),
            padded_vocab=data["padded_vocab"],
            dtype=data.get("dtype", ""),
            source=Origin.parse(data["source"]),
            growth=GrowthRecord.parse(data["growth"]),
            masks={Dimension(name): mask_from_json(name, found) for name, found in masks},
            fresh=_fresh(data.get("fresh")),
            lags=None if data.get("lags") is None else LagsSaid(lags_from_json(data["lags"])),
            options=Options.parse(data["options"]),
            dropped=tuple(data.get("dropped", [])),
            dropped_why=data.get("dropped_why"),
            optimizer=data["optimizer"],
            training=None if training is None else _carried(training),
            drift=tuple(data.get("drift", [])),
            notes=tuple(data.get("notes", [])),
            files=tuple(
                FileRecord(f["path"], f["size"], f["xxh3_128"], parts=f.get("parts", ()))
                for f in data["files"]
            ),
            receipt=_receipt(data["receipt"]),
            xxh3_128=data.get(SUM),
            read=data,
        )

    def leaves_out(self, key: str) -> bool:
        """Whether the source's content under ``key`` is not in what it describes.

        Earlier versions wrote the reason behind the key.
        """
        earlier = self.dropped_why is None and any(
            entry.startswith(f"{key}: ") for entry in self.dropped
        )
        return earlier or key in self.dropped

    @property
    def has_optimizer(self) -> bool:
        """Whether it describes an optimizer's state, too."""
        return self.optimizer not in (NO_OPTIMIZER, DROPPED)

    @property
    def has_sum(self) -> bool:
        """Whether it was read with a sum over its content."""
        return self.xxh3_128 is not None


def _fresh(data: Json | None) -> Json | None:
    """Return what plain data says of fresh indices, which are indices.

    Raises:
        ValueError: For what are none.
    """
    if data is not None:
        fresh_from_json(data)
    return data


def _receipt(data: Json | None) -> Receipt | None:
    return None if data is None else Receipt.parse(data)


def _carried(data: Json) -> "Carried":
    from flmgrow.formats.history.training_state import Carried

    return Carried.parse(data, "training")
