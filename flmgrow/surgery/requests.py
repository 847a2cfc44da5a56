"""What somebody asks for, made into a plan: the same for the command line and for Python."""

from dataclasses import dataclass, replace

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, HuggingFaceOptions
from flmgrow.formats.history.manifest import masks_of, provenance_of
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, GivenTokenizer
from flmgrow.formats.writing import written_format
from flmgrow.operators.choices import FreshSecondMoment
from flmgrow.operators.shape import shape_for
from flmgrow.operators.target import Target
from flmgrow.surgery.layout_request import FileRequest, LayoutRequest, check_dtype
from flmgrow.surgery.plan import GrowthPlan, make_plan
from flmgrow.surgery.target_file import GrowthRequest
from flmgrow.text import Setting, Text

SHARD_SIZE = 5 << 30
"""Bytes of a safetensors shard, at most, unless somebody says otherwise."""


@dataclass(frozen=True)
class Files:
    """What is asked of the files of a result; None keeps the source's.

    ``shard_size`` is in bytes and, like ``family``, ``keep_code`` and ``tokenizer``, matters to
    Hugging Face folders alone.
    """

    dtype: str | None = None
    format: str | None = None
    torch_dist_version: str | None = None
    shard_size: int = SHARD_SIZE
    family: str | None = None
    keep_code: bool = False
    tokenizer: GivenTokenizer = NO_TOKENIZER

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.shard_size < 1:
            raise UsageError(
                Text(Setting("shard_size"), f" {self.shard_size}: wanted at least one byte"),
                "such as 5G",
            )

    def request(self, source: Checkpoint) -> FileRequest:
        """Return the request of the files, which say where the weights of ``source`` come from."""
        told = HuggingFaceOptions(
            self.shard_size,
            self.family,
            self.keep_code,
            provenance_of(source),
            self.tokenizer.files,
            self.tokenizer.ids,
        )
        return FileRequest(self.dtype, self.format, self.torch_dist_version, told)


AS_IN_SOURCE = Files()


def plan_growth_of(
    source: Checkpoint,
    wanted: GrowthRequest,
    files: Files = AS_IN_SOURCE,
    *,
    parameters: float | None = None,
    drop_optimizer: bool = False,
    bake: bool = False,
) -> GrowthPlan:
    """Return the plan that grows and lays out ``source`` as ``wanted``.

    ``parameters`` lets the sizes be chosen for that many. ``bake`` puts masks into the weights at
    once.

    Raises:
        UsageError: For a target that cannot be reached and for requests that contradict each other.
    """
    target, layout = _untied(wanted.target(), source), wanted.layout()
    _check_moments(target, drop_optimizer)
    _check_head_size(source, wanted.kv_channels)
    if parameters is not None:
        target = _solved(source, target, layout, parameters)
    return make_plan(
        source,
        target,
        layout,
        files.request(source),
        drop_optimizer=drop_optimizer,
        bake={} if bake else None,
    )


def plan_layout_of(
    source: Checkpoint,
    layout: LayoutRequest,
    files: Files = AS_IN_SOURCE,
    *,
    drop_optimizer: bool = False,
) -> GrowthPlan:
    """Return the plan that lays ``source`` out anew, in other files or another format."""
    return make_plan(source, Target(), layout, files.request(source), drop_optimizer=drop_optimizer)


def plan_import_of(
    source: Checkpoint, layout: LayoutRequest, files: Files = AS_IN_SOURCE
) -> GrowthPlan:
    """Return the plan that makes a Megatron checkpoint of a Hugging Face folder.

    Raises:
        UsageError: If ``source`` is none, or another format is asked for.
    """
    wanted = files.format or "megatron"
    if not written_format(wanted).ranks:
        raise UsageError(
            Text(Setting("format"), f" {wanted}: import writes Megatron's"), "use flmgrow export"
        )
    if source.format != "huggingface":
        raise UsageError(
            "is a Megatron checkpoint",
            "use flmgrow reshard",
            where=source.path,
            wanted="a Hugging Face folder",
        )
    return plan_layout_of(source, layout, replace(files, format=wanted))


def plan_bake_of(
    source: Checkpoint, value: float | None = None, *, drop_optimizer: bool = False
) -> GrowthPlan:
    """Return the plan that puts the masks of ``source`` into its weights, all at ``value``.

    Raises:
        UsageError: If it has none.
    """
    masks = masks_of(source)
    if not masks:
        raise UsageError(
            "has no masks to bake", "it is an ordinary checkpoint already", where=source.path
        )
    values = {} if value is None else dict.fromkeys(masks, value)
    return make_plan(source, Target(), LayoutRequest(), drop_optimizer=drop_optimizer, bake=values)


def _untied(target: Target, source: Checkpoint) -> Target:
    """Return the target without a request to untie that reading the source has fulfilled."""
    return replace(target, untie=False) if source.untied else target


def _check_moments(target: Target, dropped: bool) -> None:
    if dropped and target.fresh_second_moment is not FreshSecondMoment.ZERO:
        raise UsageError(
            Text(
                Setting("fresh_second_moment"),
                f" {target.fresh_second_moment}: ",
                Setting("no_optimizer", True),
                " leaves all moments out",
            ),
            "leave out one of the two",
        )


def _check_head_size(source: Checkpoint, wanted: int | None) -> None:
    if wanted is not None and wanted != source.config.head_dim:
        raise UsageError(
            Text(
                Setting("kv_channels"),
                f" {wanted}: the source has heads of {source.config.head_dim}",
            ),
            "the frequencies of rotary positions and the attention scale depend on the head size, "
            "so it cannot grow; add heads instead",
        )


def _solved(
    source: Checkpoint, target: Target, request: LayoutRequest, parameters: float
) -> Target:
    """Choose the sizes for so many parameters; sizes that are given as well would contradict it."""
    if any((target.layers, target.hidden, target.ffn, target.heads, target.kv_groups)):
        raise UsageError(
            Text(Setting("to_params"), " chooses the sizes"),
            Text("leave out the size options, or ", Setting("to_params")),
        )
    pp = request.pp or source.layout.pp
    chunks = pp * (request.vpp or (source.layout.vpp if pp == source.layout.pp else 1))
    shape = shape_for(source.config, parameters, request.tp or source.layout.tp, chunks)
    return replace(
        target,
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        kv_groups=shape.kv_groups,
    )
