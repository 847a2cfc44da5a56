"""The files of an ``fsdp_dtensor`` checkpoint.

They are those of a ``torch_dist`` one with other names and without a common part of its own: every
entry of it is an object by itself, and of those in a dict, each entry.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpMetadata, DcpObject
from flmgrow.formats.megatron.arguments.layout_rows import PP
from flmgrow.formats.megatron.arguments.run_rows import FORMAT, FSDP_DTENSOR
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.fsdp_dtensor.names import SCHEDULE, sort_items
from flmgrow.formats.megatron.torch_dist.common import CommonPart
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.objects import is_of_optimizer
from flmgrow.formats.megatron.unsupported import BACKENDS
from flmgrow.text import Found, Text

_ARGUMENTS = "args"
_FIRST = (_ARGUMENTS, "checkpoint_version", "iteration")


def fsdp_folder(folder: Path, metadata: DcpMetadata) -> DistFolder:
    """Return the ``fsdp_dtensor`` checkpoint in ``folder``, opened; ``metadata`` lists its items.

    Raises:
        BadCheckpointError: If it is another format's, of several pipeline ranks, or hostile.
    """
    found = sort_items(metadata, folder)
    with ExitStack() as undo:
        items = DcpItems(folder)
        undo.callback(items.close)
        optimizer = any(is_of_optimizer(name) for name in found.sharded.tensors)
        common = _common(folder, items, found.once, optimizer)
        _check(folder, common)
        contents = DistFolder(
            folder, metadata, items, common, found.sharded,
            file_format=FSDP_DTENSOR, main_weights=True, fused=found.fused,
        )  # fmt: skip
        undo.pop_all()
    return contents


def _common(
    folder: Path, items: DcpItems, once: Mapping[str, DcpObject], optimizer: bool
) -> CommonPart:
    """Return what a run saves once, in Megatron-LM's order; the optimizer's place if it has one."""
    values = {name: items.open_object(item).root for name, item in once.items()}
    root: dict[object, object] = {name: values.pop(name) for name in _FIRST if name in values}
    if optimizer:
        root["optimizer"] = {}
    for name, value in values.items():
        key, _, inner = name.partition(".")
        if inner:
            schedule = root.setdefault(SCHEDULE, {})
            assert isinstance(schedule, dict)
            schedule[inner] = value
        else:
            root[key] = value
    args = once.get(_ARGUMENTS)
    return CommonPart(root, str(folder / args.file) if args else str(folder))


def _check(folder: Path, common: CommonPart) -> None:
    if _ARGUMENTS not in common.root:
        return
    arguments = arguments_in(common.root, common.where)
    said = FORMAT.get(arguments)
    if said != FSDP_DTENSOR and said in BACKENDS:
        raise BACKENDS[str(said)].refusal(str(folder))
    stages = PP.get(arguments)
    if stages not in (None, 1):
        raise BadCheckpointError(
            Text(f"args.{PP.name}: found ", Found(stages)),
            "Megatron-FSDP numbers the layers of each pipeline stage from 0, so stages overwrite "
            "one another where it saves: save without pipeline parallelism",
            where=common.where,
            wanted="1",
        )
