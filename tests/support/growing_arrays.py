"""Growing whole logical tensors in memory, without a checkpoint."""

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flmgrow.formats.reading import LogicalReader
from flmgrow.model.axes import Box, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.growth import Growth
from flmgrow.surgery.values import GrownValues

Arrays = dict[str, NDArray[np.float64]]


class WholeArrays:
    """A reader over arrays in memory; as moments have no shift, its tensors have none."""

    def __init__(self, config: ModelConfig, arrays: Arrays, shifted: bool) -> None:
        self.arrays = arrays
        self.tensors = {
            name: tensor if shifted else replace(tensor, shift=0.0)
            for name, tensor in logical_tensors(config).items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(self, name: str, box: Box) -> NDArray[np.float64]:
        return self.arrays[name][tuple(slice(*span) for span in box.ranges)]

    def read_into(self, target: NDArray[np.float64], name: str, box: Box) -> None:
        target[...] = self.read(name, box)


def grown(growth: Growth, arrays: Arrays, shifted: bool) -> Arrays:
    reader = WholeArrays(growth.old, arrays, shifted)
    values = GrownValues(growth, cast(LogicalReader, reader))
    result = {}
    for name, tensor in logical_tensors(growth.new).items():
        whole = full_box(tensor.shape(growth.new.sizes))
        plain = tensor if shifted else replace(tensor, shift=0.0)
        result[name] = values.box(plain, whole, np.dtype(np.float64))
    return result
