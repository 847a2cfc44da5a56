"""What the distributed optimizer of each model rank saves as objects of its own.

Where its state is bound to a layout, a rank (``dp_group``: tensor ranks first, then stages) has its
param groups in an object, and other settings in further ones. All ranks must agree, but the groups
of one may stand in another order, or lack one that none of its parameters is in: megatron-core up
to 0.15 makes them as a rank's own parameters come.
"""

import re
from collections.abc import Collection, Mapping
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER, Checkpoint, OptimizerState
from flmgrow.formats.layout.placements import placements
from flmgrow.formats.megatron.gradient_buffers import DTYPE, module_order
from flmgrow.formats.megatron.torch_dist.contents import DistFolder, param_groups
from flmgrow.formats.reading import AssembledArray
from flmgrow.formats.tables.gpt import ROWS

PREFIX = "optimizer.distributed."
SHARDING = "param_state_sharding_type"
IN_MEMORY = "fully_sharded_bucket_space"
STATE = "param_state"

_OBJECT = re.compile(r"optimizer\.distributed\.(dp_group_idx_\d+)\.(\w+)/shard_0_1")
_ELSEWHERE = ("per_bucket_numel", "per_bucket_numel_unpadded", STATE)
"""What is no setting: sizes that follow from the model, and the state itself."""


def sharding(contents: DistFolder) -> object:
    """Return what the common part says of how the optimizer's state is laid out, if anything."""
    common = contents.root.get("optimizer")
    return common.get(SHARDING) if isinstance(common, dict) else None


def rank_weights(checkpoint: Checkpoint) -> dict[str, list[AssembledArray]]:
    """Return the weights of every model rank in order of modules, by the rank's ``dp_group``."""
    tensors, sizes, layout = checkpoint.reader.tensors, checkpoint.stored_sizes, checkpoint.layout
    arrays = [
        AssembledArray(placement, checkpoint.reader)
        for placement in placements(ROWS, tensors, sizes, layout, checkpoint.fused)
    ]
    return {
        f"dp_group_idx_{pipeline * layout.tp + tensor}": module_order(
            checkpoint, (tensor, pipeline), arrays
        )
        for tensor, pipeline in layout.ranks
    }


def rank_entries(contents: DistFolder, ranks: Collection[str]) -> dict[str, dict[str, object]]:
    """Return what the optimizer of each model rank holds beside its state.

    Raises:
        BadCheckpointError: For a rank that there is not.
    """
    found: dict[str, dict[str, object]] = {group: {} for group in ranks}
    for name, item in contents.metadata.objects.items():
        if not name.startswith("optimizer."):
            continue
        match = _OBJECT.fullmatch(name)
        if not match or match[1] not in found:
            _refuse(contents, name, "the args and the layout make no such rank")
        if match[2] not in _ELSEWHERE:
            found[match[1]][match[2]] = contents.open_object(item)
    return found


def common_state(
    contents: DistFolder, entries: Mapping[str, Mapping[str, object]], dtypes: tuple[str, str]
) -> OptimizerState:
    """Return what is not per parameter, alike in the ``entries`` of all ranks with parameters.

    ``dtypes`` are those of weights and of gradients.

    Raises:
        BadCheckpointError: Where ranks differ.
    """
    groups = {
        rank: param_groups(entry.get("optimizer"), f"{contents.folder}: {PREFIX}{rank}")
        for rank, entry in entries.items()
    }
    first = max(groups, key=lambda rank: len(groups[rank]))
    others = {rank: _without_groups(entry) for rank, entry in entries.items()}
    for rank, own in groups.items():
        known = [group for group in groups[first] if group in own]
        if len(known) != len(own) or others[rank] != others[first]:
            _refuse(
                contents,
                f"{PREFIX}{rank}",
                f"its optimizer is unlike that of {first}",
                "ranks of one checkpoint must agree; " + WITHOUT_OPTIMIZER,
            )
    return OptimizerState(
        groups=groups[first],
        step=None,
        mixed_precision=dtypes[0] != DTYPE,
        other=others[first],
        gradient_dtype=dtypes[1],
    )


def _without_groups(entry: Mapping[str, object]) -> dict[object, object]:
    return {key: value for key, value in entry.items() if key != "optimizer"}


def _refuse(
    contents: DistFolder,
    name: str,
    what: str,
    hint: str = "the optimizer and the weights do not belong together",
) -> NoReturn:
    raise BadCheckpointError(what, hint, where=(contents.folder, name))
