"""What can be said to the functions of :mod:`flmgrow.api`, in the words of the command line.

All of it may be left out; what that means, each function's own default says.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypedDict


class ReadOptionsGiven(TypedDict, total=False):
    """How to open a source: what its files leave open, and what its user vouches for.

    ``ignore_arguments`` and ``ignore_fields`` are names or patterns with ``*``; ``set_arguments``
    take the place of Megatron-LM's arguments that are missing or wrong.
    """

    ignore_arguments: Collection[str]
    ignore_fields: Collection[str]
    set_arguments: Mapping[str, object]
    max_position_embeddings: int
    untie: bool
    true_vocab_size: int
    transformer_impl: str


class LayoutGiven(TypedDict, total=False):
    """The layout of a result; what is not given stays as near to the source's as it can."""

    tp: int
    pp: int
    vpp: int
    pipeline_layers: list[int]
    padded_vocab_size: int


class FilesGiven(TypedDict, total=False):
    """The files of a result: ``format`` is megatron, torch_dist, fsdp_dtensor or huggingface."""

    dtype: str
    format: str
    torch_dist_version: str
    shard_size: int


class PlanGiven(LayoutGiven, FilesGiven, total=False):
    """The sizes of a grown model in Megatron-LM's terms, how to grow, layout and files.

    ``to_params`` chooses the sizes for so many parameters; ``bake`` puts masks into the weights at
    once; ``no_optimizer`` leaves the optimizer's state out.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    to_params: float
    method: str | dict[str, str]
    depth_placement: str
    new_layers: str
    copy_noise: float
    ramp_steps: int
    untie: bool
    bake: bool
    optimizer: str
    fresh_second_moment: str
    seed: int
    no_optimizer: bool


class ImportGiven(LayoutGiven, FilesGiven, total=False):
    """What ``import_`` chooses: layout and files."""


class LayoutPlanGiven(LayoutGiven, FilesGiven, total=False):
    """What ``reshard`` changes: layout, files, and whether the optimizer's state comes along."""

    no_optimizer: bool


class RunningGiven(TypedDict, total=False):
    """How to write: ``max_memory`` in bytes, ``progress`` is told bytes as they are written.

    ``rank`` of ``world_size`` processes that see the same folders writes its share; ``launch`` is
    a word that they have in common, and others that may run at the same time have not.
    """

    workers: int
    max_memory: int
    restart: bool
    double_check: bool
    allow_nonfinite: bool
    replicated: str
    init_std: float
    rank: int
    world_size: int
    launch: str
    progress: Callable[[int], None]


class SayingGiven(TypedDict, total=False):
    """How texts go on: ``tokenizer`` is a folder, a file or ``bytes``, in place of the checkpoint's
    own; a text ends before any of ``stop``.

    The others are those of :class:`flmgrow.generation.choosing.Choice` and
    :class:`flmgrow.generation.decoding.GenerationRequest`.
    """

    tokenizer: str | os.PathLike[str] | None
    stop: Collection[str]
    max_new_tokens: int
    batch_size: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int


class EvaluatingGiven(TypedDict, total=False):
    """How checkpoints are evaluated: what is asked, and how answers are computed.

    The fields are those of :class:`flmgrow.evaluation.request.EvaluationRequest` and
    :class:`flmgrow.evaluation.backends.Computing`; ``restart`` drops what an interrupted evaluation
    left.
    """

    data: str | os.PathLike[str] | None
    shots: int | None
    seed: int
    limit: int | None
    backend: str
    dtype: str | None
    device: str | None
    batch_size: int | None
    tokenizer: str | os.PathLike[str] | None
    restart: bool


class ClusterGiven(TypedDict, total=False):
    """A cluster and its prices, for ``cost``.

    ``utilisation`` is a share of the devices' peak for all stages, or one for each; ``calibrate``
    takes it from a run. ``price`` is in dollars per device hour, ``carbon`` in kg of CO2 per kWh,
    ``overhead`` what the data centre draws over what its devices draw, ``storage`` the bytes per
    second of its file system. ``peak_tflops``, ``watts`` and ``memory`` (bytes) are of a device
    that is not in the table.
    """

    accelerator: str
    gpus: int | None
    utilisation: float | Sequence[float] | None
    calibrate: str | os.PathLike[str] | None
    price: float | None
    carbon: float | None
    overhead: float
    storage: float
    peak_tflops: float | None
    watts: float | None
    memory: float | None
