"""The whole arrays that the metadata of a distributed checkpoint lists."""

import re

from flmgrow.formats.dcp.metadata import DcpMetadata
from flmgrow.formats.megatron.arguments.shapes import ShapeCollector, StoredShapes
from flmgrow.formats.megatron.torch_dist.objects import is_of_optimizer

_STACKED = re.compile(r"decoder\.layers\.(?![0-9]+\.).*", re.DOTALL)
_TABLE = "embedding.word_embeddings.weight"


def listed_shapes(metadata: DcpMetadata) -> StoredShapes:
    """Return the arrays of the model."""
    collector = ShapeCollector()
    single = []
    for name, tensor in metadata.tensors.items():
        if is_of_optimizer(name):
            continue
        if _STACKED.fullmatch(name) and tensor.shape:
            collector.add_stacked(name, tensor.shape)
        else:
            single.append((name, tensor.shape))
    collector.add_chunk(single)
    table = metadata.tensors.get(_TABLE)
    return collector.result(True, table.dtype if table is not None else "float32")
