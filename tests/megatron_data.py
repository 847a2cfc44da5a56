"""What megatron-core makes of corpora, in a process of its own.

The tests are in ``trainer/test_data_megatron.py``.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> dict[str, Any]:
    """Build each corpus again with megatron-core, and read it. Returns what was found."""
    import torch

    from flmgrow.trainer import cpu

    cpu.install()
    from megatron.core.datasets.indexed_dataset import (
        DType,
        IndexedDataset,
        IndexedDatasetBuilder,
    )

    sizes = (257, 65_499, 65_500, 100_256)
    answer: dict[str, Any] = {
        "optimal": {str(size): DType.optimal_dtype(size).__name__ for size in sizes}
    }
    for name in ("bytes", "ranks", "wide"):
        dataset = IndexedDataset(str(folder / name / "data"))
        documents = [dataset[i].tolist() for i in range(len(dataset))]
        again = folder / f"{name}-again"
        builder = IndexedDatasetBuilder(f"{again}.bin", dtype=dataset.index.dtype)
        for document in documents:
            builder.add_document(torch.tensor(document), [len(document)])
        builder.finalize(f"{again}.idx")
        built = {
            ending: hashlib.sha256(Path(f"{again}.{ending}").read_bytes()).hexdigest()
            for ending in ("bin", "idx")
        }
        answer[name] = {
            "documents": documents,
            "built": built,
            "dtype": dataset.index.dtype.__name__,
        }
    return answer


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
