"""Looking at the optimizer state of a checkpoint: through flmgrow, and through torch."""

from pathlib import Path
from typing import Any

import torch
from damage import rank_files
from growing import same_bits

from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.model.arrays import Array
from flmgrow.model.axes import full_box

Content = dict[str, Any]
States = dict[str, dict[str, Array]]


def states(path: Path) -> States:
    """Every logical tensor of every state in full, as stored, padding included."""
    with with_optimizer(open_checkpoint(path)) as opened:
        return {
            str(state): {
                name: reader.read(name, full_box(reader.shape(name))) for name in reader.tensors
            }
            for state, reader in opened.readers.items()
        }


def assert_same(a: Path, b: Path) -> None:
    """Insist that two checkpoints hold the same bits, and the same of what belongs to Adam."""
    one, other = states(a), states(b)
    assert list(one) == list(other) == ["weight", "master", "exp_avg", "exp_avg_sq"]
    for state, name in ((kind, name) for kind in one for name in one[kind]):
        assert same_bits(one[state][name], other[state][name]), (state, name)
    with open_checkpoint(a) as x, open_checkpoint(b) as y:
        assert vars(with_optimizer(x).optimizer) == vars(with_optimizer(y).optimizer)


def optimizers(path: Path) -> list[Any]:
    """What torch reads of every rank's optimizer and scheduler."""
    contents = [torch.load(file, weights_only=False) for file in rank_files(path)]
    return [[content["optimizer"], content["opt_param_scheduler"]] for content in contents]


def inner(content: Content) -> Content:
    """Torch's part of a rank's optimizer state."""
    state = content["optimizer"]
    found: Content = state.get("optimizer", state)
    return found


def equal(a: Any, b: Any) -> bool:
    """Whether two nests are the same, tensors bit for bit, dicts in the same order."""
    if isinstance(a, torch.Tensor):
        return bool(a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)
