"""What every opened checkpoint offers, whatever its format."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.companions import Companions, Ids
from flmgrow.formats.layout.lags import Lags
from flmgrow.formats.layout.placements import Layout, Placement, Slice
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.torch_file.file import scalar
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.text import Found, Setting, Text

WITHOUT_OPTIMIZER = Text(Setting("no_optimizer", True), " goes on without")
"""The way out where an optimizer's state is what cannot be read."""


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What an optimizer holds beside the states of each parameter.

    ``groups`` are its param groups without their parameters. ``step`` is what Adam counts, as it is
    stored, or None where a group holds it. ``mixed_precision`` says that weights are not float32
    and have float32 masters; ``dtypes`` are those of the states; ``other`` is carried.
    ``gradient_dtype`` is that of the buffers a distributed optimizer works on, None for one that is
    not distributed. ``digest`` is of the files that hold the states apart from the weights.
    ``lags`` say of which parameters less was counted, or which have no state. Of those
    ``state_readers`` read what training would begin with: moments of zero, and the weight.
    ``native_mup``: the groups are those of megatron-core's own muP.
    """

    groups: tuple[Mapping[object, object], ...]
    step: object
    mixed_precision: bool
    dtypes: Mapping[State, str] = field(default_factory=dict)
    other: Mapping[object, object] = field(default_factory=dict)
    gradient_dtype: str | None = None
    digest: str = ""
    lags: Lags = field(default_factory=dict)
    native_mup: bool = False

    @property
    def step_count(self) -> int:
        """How many steps Adam has counted, where nothing lags.

        Raises:
            BadCheckpointError: If it does not say.
        """
        found = self.step
        if found is None:
            found = next((group["step"] for group in self.groups if "step" in group), None)
        if isinstance(found, TensorRecord):
            found = scalar(found)
        if not isinstance(found, int | float):
            raise BadCheckpointError(
                Text("optimizer: counts ", Found(f"{found!r:.40}")), wanted="a number of steps"
            )
        return int(found)


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a source that its files leave open.

    ``ignored_arguments`` are Megatron-LM's arguments that the user vouches for, ``ignored_fields``
    those of ``config.json``: names, or patterns with ``*``. ``true_vocab`` is the number of
    embedding rows that are real, where the files do not say. ``max_positions`` is the length of the
    texts that the model is wanted for, where that is less than it was made for. ``fused`` chooses
    the names that a Megatron checkpoint written from a Hugging Face folder has. ``look_only``:
    nothing will be written, so an argument that nobody knows is told, not refused.
    ``given_arguments`` take the place of Megatron-LM's arguments in the files, or stand for missing
    ones; they are as JSON can say them, a dtype as ``torch.bfloat16``. ``only_missing``: they leave
    a checkpoint alone that has arguments.
    """

    ignored_arguments: Collection[str] = ()
    ignored_fields: Collection[str] = ()
    max_positions: int | None = None
    untie: bool | None = None
    true_vocab: int | None = None
    fused: bool = True
    look_only: bool = False
    given_arguments: Mapping[str, object] = field(default_factory=dict)
    only_missing: bool = False

    @property
    def corrections(self) -> Mapping[str, object]:
        """The given arguments that take the place of stored ones."""
        return {} if self.only_missing else self.given_arguments

    def real_rows(self, told: int, stored: int) -> int:
        """Return how many of ``stored`` embedding rows are real, where the files say ``told``.

        Raises:
            UsageError: If the user says more than there are.
        """
        if self.true_vocab is None:
            return told
        if self.true_vocab > stored:
            raise UsageError(
                Text(
                    Setting("true_vocab_size"), f" {self.true_vocab}: only {stored} rows are stored"
                )
            )
        return self.true_vocab


AS_STORED = ReadOptions()
"""Nothing is said beyond what the files do."""


@dataclass(frozen=True)
class Dropped:
    """Something of a source that a result does not have; ``why`` is empty where its name says it
    all.
    """

    name: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.why else self.name


@dataclass(frozen=True)
class HubOrigin:
    """Where on the Hub a checkpoint was fetched from: repository, and the commit it stood at."""

    repository: str
    commit: str


@dataclass(frozen=True)
class HuggingFaceOptions:
    """What is chosen about a Hugging Face folder to be written.

    ``shard_size`` is in bytes. ``family`` is the ``model_type``, None to choose one that can say
    the model. ``keep_code`` carries the source's programs along. ``provenance`` are
    short named texts, written into every shard, that say where the weights come from. ``tokenizer``
    holds files, by name, that stand in the place of the source's own; ``token_ids`` are the special
    ids that were found beside them.
    """

    shard_size: int = 5 << 30
    family: str | None = None
    keep_code: bool = False
    provenance: tuple[tuple[str, str], ...] = ()
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)
    token_ids: Ids = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, object]:
        """The options as JSON can say them: files by their sums."""
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in self.tokenizer.items()}
        return {
            "shard_size": self.shard_size,
            "family": self.family,
            "keep_code": self.keep_code,
            "provenance": dict(self.provenance),
            "tokenizer": sums,
            "token_ids": dict(self.token_ids),
        }


@dataclass(frozen=True)
class TargetModel:
    """What a written checkpoint shall hold: model, layout, stored vocabulary, dtype.

    ``dtype`` is None to keep each tensor's own. ``donors[i]`` is the source layer whose carried
    state (such as a layer's ``_extra_state``) layer ``i`` takes. ``optimizer`` is what the written
    optimizer state is described by, None to write none. ``torch_dist_version`` is the megatron-core
    from which on the format ``torch_dist`` looks as it shall, None for the oldest there is.
    ``shares`` say, where several replicas of a rank write and the format knows shares, which one
    writes an array: by its rank and any slice in it, the first where it is not said.
    """

    config: ModelConfig
    layout: Layout
    padded_vocab: int
    dtype: str | None = None
    donors: tuple[int, ...] = ()
    optimizer: OptimizerState | None = None
    format: str = "megatron"
    torch_dist_version: str | None = None
    huggingface: HuggingFaceOptions = field(default_factory=HuggingFaceOptions)
    shares: Mapping[tuple[tuple[int, int], Slice], int] = field(default_factory=dict)

    def replica_of(self, placement: Placement) -> int:
        """Return which replica of its rank writes an array."""
        return self.shares.get((placement.rank, placement.slices[0]), 0)


FileSums = Callable[[Callable[[int], object]], tuple[str, ...]]
"""Checks all sums of one file, telling the bytes read, and returns the names of their kinds.

Raises BadCheckpointError, naming the file.
"""


def check_all(sums: Mapping[Path, FileSums], progress: Callable[[int], object]) -> tuple[str, ...]:
    """Check the sums of all files and return the names of their kinds."""
    return tuple(sorted({kind for check in sums.values() for kind in check(progress)}))


class Contents(Protocol):
    """The files of a checkpoint, and what they hold beside its pieces."""

    @property
    def nbytes(self) -> int:
        """The size of all files."""

    @property
    def count(self) -> int:
        """The number of files."""

    def digest(self) -> str:
        """Return a digest of all content."""

    def sums(self) -> Mapping[Path, FileSums]:
        """Return, for every file, what checks the sums that the format has for it."""

    def verify(self, progress: Callable[[int], object]) -> tuple[str, ...]:
        """Check all sums and return the names of their kinds; the format may have none.

        Raises:
            BadCheckpointError: The message names the file.
        """

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError if a file was changed since it was opened."""

    def close(self) -> None:
        """Close all files."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: its model, layout and files, and a reader of its logical tensors.

    ``path`` is its root, ``folder`` the iteration's own folder. ``iteration`` is None
    for a release. ``carried`` says, per kind of content that is no weight, in one line what it is.
    ``optimizer`` and ``state_readers`` are there once its optimizer state was asked for. ``hub`` is
    where on the Hub it comes from, None for a folder of the user's own. ``notes`` say how it was
    read where that is not plain from its files. ``companions`` say how the model is spoken to.
    ``given`` are arguments that the user gave in the place of those in its files. ``untied`` says
    that its head was told from a shared table when it was read, as the user wished.
    """

    path: Path
    folder: Path
    iteration: int | None
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    vocab_multiple: int
    dtype: str
    reader: LogicalReader
    contents: Contents
    fused: bool
    carried: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    state_readers: Mapping[State, LogicalReader] = field(default_factory=dict)
    format: str = "megatron"
    hub: HubOrigin | None = None
    notes: tuple[str, ...] = ()
    companions: Companions = field(default_factory=Companions)
    given: Mapping[str, object] = field(default_factory=dict)
    untied: bool = False

    @property
    def name(self) -> str:
        """What it is called in manifests: its folder's name, or its repository's."""
        return self.path.resolve().name if self.hub is None else self.hub.repository

    @property
    def readers(self) -> dict[State, LogicalReader]:
        """A reader for each state that is at hand, the weights' first."""
        return {State.WEIGHT: self.reader, **self.state_readers}

    @property
    def stored_sizes(self) -> dict[Axis, int]:
        """The sizes of every axis as stored: the vocabulary with its padding."""
        return {**self.config.sizes, Axis.VOCAB: self.padded_vocab}

    @property
    def nbytes(self) -> int:
        """The size of all its files."""
        return self.contents.nbytes

    def close(self) -> None:
        """Close all files."""
        self.contents.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
