"""The sources of chance of a rank, as a checkpoint keeps them and a run takes them up again."""

import base64
import json
import random
from pathlib import Path

import numpy as np
import torch

from flmgrow.errors import BadCheckpointError
from flmgrow.trainer.megatron.core import tensor_parallel

RANDOM = "random_states"
"""The folder in an iteration's that has a file for each rank."""


def random_states() -> bytes:
    """Return, as JSON, the state of every source of chance of this rank."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    trackers = tensor_parallel.get_cuda_rng_tracker().get_states()
    found = {
        "python": json.loads(json.dumps(random.getstate())),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _text(torch.get_rng_state()),
        "device": _text(torch.cuda.get_rng_state()),
        "trackers": {name: _text(state) for name, state in trackers.items()},
    }
    return json.dumps(found).encode() + b"\n"


def restore_random_states(folder: Path) -> str | None:
    """Continue this rank's sources of chance where the checkpoint in ``folder`` left them.

    A run with other ranks than before, or on another kind of device, keeps those it was started
    with. Returns why they begin anew, if they do.
    """
    files, world = sorted((folder / RANDOM).glob("rank_*.json")), torch.distributed.get_world_size()
    if len(files) != world:
        return f"{folder / RANDOM} has those of {len(files)} ranks, this run has {world}"
    path = files[torch.distributed.get_rank()]
    try:
        found = json.loads(path.read_bytes())
        version, keys, gauss = found["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numbers, *rest = found["numpy"]
        np.random.set_state((kind, np.array(numbers, np.uint32), *rest))
        torch.set_rng_state(_state(found["torch"]))
        device = _state(found["device"])
        if len(device) == len(torch.cuda.get_rng_state()):
            torch.cuda.set_rng_state(device)
            trackers = {name: _state(text) for name, text in found["trackers"].items()}
            tensor_parallel.get_cuda_rng_tracker().set_states(trackers)
            return None
        return f"{path} has that of another kind of device"
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise BadCheckpointError(f"not as the trainer wrote it: {error}", where=path) from None


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.cpu().numpy())).decode()


def _state(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
