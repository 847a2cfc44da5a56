"""The names that a written pickle may have.

A pickle may name any function at all, and who loads what we write would call it. Reading calls
nothing. But what a checkpoint holds beside its weights is carried on as data, and would be called
by the program that loads the result. So every name in what is written stands on one of the two
lists below: ``CALLED`` holds classes and functions that make data of whatever they are given,
``MENTIONED`` what may be named, but not called (a call of ``bytearray`` takes as much memory as it
says). All else is unknown, and unknown is not harmless: a class runs its own code, too.

We write protocol 2, where Python's unpickler takes the names of Python 2 for those of Python 3
(``commands.Popen`` is ``subprocess.Popen``). What counts is the name that it would look up:
:func:`python3_name`.
"""

import _compat_pickle  # what the unpickler itself goes by
import sys
from collections.abc import Iterator, Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.values import (
    ITEMSIZES,
    STORAGE_DTYPES,
    UNTYPED,
    Global,
    Opaque,
    OrderedMap,
    TensorRecord,
)

_NUMPY_DTYPES = """
    BoolDType ByteDType BytesDType CLongDoubleDType Complex128DType Complex64DType DateTime64DType
    Float16DType Float32DType Float64DType Int16DType Int32DType Int64DType Int8DType IntDType
    LongDType LongDoubleDType LongLongDType ObjectDType ShortDType StrDType StringDType
    TimeDelta64DType UByteDType UInt16DType UInt32DType UInt64DType UInt8DType UIntDType ULongDType
    ULongLongDType UShortDType VoidDType
"""
_PATHS = "PosixPath PurePath PurePosixPath PureWindowsPath Path WindowsPath"

_PYTHON = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "collections": "OrderedDict deque Counter defaultdict",
    "builtins": "complex range slice",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "uuid": "UUID SafeUUID",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "signal": "Signals Handlers",
    "_io": "BytesIO StringIO",
    "io": "BytesIO StringIO",
    "random": "Random",
}
_NUMPY = {
    "numpy": "dtype",
    "numpy.dtypes": _NUMPY_DTYPES,
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"),
    "numpy.random._pickle": "__generator_ctor __bit_generator_ctor __randomstate_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
}
_TORCH = {
    "torch": "Generator Size device",
    "torch._C": "Generator",
    "torch.serialization": "_get_layout",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": """
        _rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter
        _rebuild_parameter_with_state _rebuild_sparse_tensor _rebuild_nested_tensor
        _rebuild_qtensor _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy
        _rebuild_device_tensor_from_cpu_tensor
    """,
}
_OLD_ENUMS = "AttnMaskType AttnType LayerType ModelType PositionEmbeddingType"
_MEGATRON = {
    "megatron.core.enums": "Fp4Recipe Fp8Recipe ModelType",
    "megatron.core.transformer.enums": """
        AttnBackend AttnMaskType AttnType CudaGraphScope InferenceCudaGraphScope LayerType ModelType
    """,
    "megatron.core.rerun_state_machine": """
        Call Caller RerunDiagnostic RerunMode RerunState RerunValidationStatus
    """,
    "megatron.core.optimizer": "OptimizerConfig",
    "megatron.core.optimizer.optimizer_config": """
        AdamOptimizerConfig OptimizerConfig ParamKey SGDOptimizerConfig
    """,
    "megatron.core.distributed.distributed_data_parallel_config": "DistributedDataParallelConfig",
    "megatron.core.model_parallel_config": "ModelParallelConfig",
    "megatron.core.transformer.transformer_config": "MLATransformerConfig TransformerConfig",
    "megatron.core.transformer.pipeline_parallel_layer_layout": "PipelineParallelLayerLayout",
    "megatron.core.datasets.utils": "Split",
    "megatron.enums": _OLD_ENUMS,
    "megatron.model.enums": _OLD_ENUMS,
    "megatron.legacy.model.enums": _OLD_ENUMS,
    "transformer_engine.common.recipe": """
        DelayedScaling Float8BlockScaling Float8CurrentScaling Format MMParams MXFP8BlockScaling
        NVFP4BlockScaling QParams _FormatHelper _OverrideLinearPrecision
    """,
}

_ONLY_MENTIONED = {
    "builtins": """
        bool bytearray bytes dict float frozenset int list object set str tuple
    """,
    "_codecs": "encode",
    "numpy": """
        bool bool_ bytes_ complex64 complex128 datetime64 float16 float32 float64 int8 int16 int32
        int64 ndarray object_ str_ timedelta64 uint8 uint16 uint32 uint64 void
    """,
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.bit_generator": "SeedSequence",
    "torch": " ".join(
        [
            *(*ITEMSIZES, *STORAGE_DTYPES, UNTYPED, "Tensor", "strided", "per_tensor_affine"),
            *("contiguous_format", "channels_last", "preserve_format"),
        ]
    ),
    "torch.storage": f"{UNTYPED} TypedStorage",
    "torch.nn.parameter": "Parameter",
}


def _names(*tables: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (module, name)
        for table in tables
        for module, names in table.items()
        for name in names.split()
    )


CALLED = _names(_PYTHON, _NUMPY, _TORCH, _MEGATRON)
"""Classes and functions that only make data, by module and name: torch's, numpy's and Python's own
rebuilding functions (torch 2.13, numpy 2), what Megatron-LM lists as safe (0.16 to 0.19) or has
in its arguments, and Transformer Engine's recipes (2.x).
"""

MENTIONED = CALLED | _names(_ONLY_MENTIONED)
"""What may be named, as a type, a dtype or a factory. Calls of these that a pickler writes, such as
a set of its members, are data by the time they are read (``calls.py``).
"""

_GO_THROUGH = frozenset(
    {("torch", "Size"), *(("collections", name) for name in _PYTHON["collections"].split())}
)
"""What goes through all that it is given. A range, or a tensor of stride 0, would never end."""

_CALLS_ITS_ARGUMENT: Mapping[tuple[str, str], tuple[int, frozenset[tuple[str, str]]]] = {
    ("torch._tensor", "_rebuild_from_type_v2"): (
        0,
        _names({"torch._utils": _TORCH["torch._utils"]}),
    ),
    **{
        ("numpy.random._pickle", name): (
            1,
            _names({"numpy.random._pickle": "__bit_generator_ctor"}),
        )
        for name in ("__generator_ctor", "__randomstate_ctor")
    },
}
"""What calls one of its arguments: the position, and what may stand there. A mentioned type is as
harmless there as in a call of its own, and no more: ``bytearray`` takes what memory it is told.
"""

_LIBRARIES = frozenset(
    {*sys.stdlib_module_names, *_compat_pickle.IMPORT_MAPPING, "numpy", "pip", "torch"}
)


def python3_name(name: Global) -> tuple[str, str]:
    """Return module and name that Python's unpickler looks up for ``name`` at protocol 2."""
    key = (name.module, name.name)
    module, own = _compat_pickle.NAME_MAPPING.get(key, key)
    if (module, own) == key:
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    return module, own


def is_foreign(name: Global) -> bool:
    """Return whether ``name`` is of a package that is neither Python's nor torch nor numpy.

    Python's and torch's own names are in a file because an attack needs them; those of a user's
    package, because a program kept an object of its own.
    """
    return python3_name(name)[0].partition(".")[0] not in _LIBRARIES


def untrusted_names(root: object) -> list[Global]:
    """Return the names in ``root`` that may not be written, in the order of the alphabet.

    Whatever holds one must be left out of an output, or refused.
    """
    found: set[Global] = set()
    seen: set[int] = set()
    todo = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, Global):
            if python3_name(value) not in MENTIONED:
                found.add(value)
        elif isinstance(value, TensorRecord):
            if value.attributes is not None:
                todo.append(value.attributes)
        elif isinstance(value, _HOLDING) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Opaque) and (
                python3_name(value.function) not in CALLED or _is_misused(value)
            ):
                found.add(value.function)
            todo.extend(members_of(value))
    return sorted(found, key=str)


def _is_misused(call: Opaque) -> bool:
    """Return whether a call of what only makes data would not end, or call something else."""
    name = python3_name(call.function)
    if name in _GO_THROUGH:
        return any(isinstance(argument, Opaque | TensorRecord) for argument in call.arguments)
    position, wanted = _CALLS_ITS_ARGUMENT.get(name, (0, None))
    if wanted is None or len(call.arguments) <= position:
        return False
    called = call.arguments[position]
    return not isinstance(called, Global) or python3_name(called) not in wanted


def refuse_programs(root: object, where: str) -> None:
    """Raise BadCheckpointError if ``root``, the content of the file ``where``, has names that may
    not be written.
    """
    for name in untrusted_names(root):
        raise BadCheckpointError(
            f"data.pkl: names {shown_name(name)}, which is not known to be harmless; "
            "nothing was run",
            "loading this file with torch may run it: find out who put it there",
            where=where,
        )


def shown_name(name: Global) -> str:
    """Return a name for a message, with what it is taken for where that is another one."""
    taken = ".".join(python3_name(name))
    return str(name) if taken == str(name) else f"{name} ({taken})"


_HOLDING = (dict, list, tuple, set, frozenset, Opaque)


def members_of(value: object) -> Iterator[object]:
    """Yield what a container or an opaque object of a file holds; nothing for all else."""
    if isinstance(value, Opaque):
        yield from value.arguments
        yield from (value.state, value.items, value.pairs)
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
        if isinstance(value, OrderedMap):
            yield value.state
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
