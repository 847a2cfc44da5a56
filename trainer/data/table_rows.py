"""The rows of a parquet file as JSON objects, so that a table is read as lines of JSON are.

Published data sets mostly come as parquet: columns, of which a corpus needs one. That column alone
is read, a batch of rows at a time, by pyarrow (the extra ``parquet``).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flmgrow.errors import BadDataError, UsageError
from flmgrow.text import Found, Setting, Text

ROWS = 256
"""Rows that are held at once."""


def read_rows(path: Path, key: str, progress: Callable[[int], None]) -> Iterator[bytes]:
    """Yield each row of a table as a JSON object of the column that holds ``key``.

    That is the column of this name, or the one that its first part names (``meta.text`` is the
    field ``text`` of the column ``meta``). ``progress`` gets the bytes of the file that were read
    since its last call.

    Raises:
        BadDataError: It is no table, it is damaged, or has no such column.
        UsageError: pyarrow is not installed.
        OSError: If the file cannot be read.
    """
    parquet, errors = _pyarrow()
    size = path.stat().st_size
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            column = key if key in names else key.partition(".")[0]
            if column not in names:
                raise BadDataError(
                    Text("has the columns ", Found(f"{', '.join(names):.200}")),
                    Text("name the one that holds the text: ", Setting("jsonl_key")),
                    where=path,
                    wanted=f"{key!r}",
                )
            share = size / max(1, table.metadata.num_rows)
            told = 0.0
            for batch in table.iter_batches(batch_size=ROWS, columns=[column]):
                for row in batch.to_pylist():
                    yield json.dumps(row, ensure_ascii=False, default=str).encode(
                        "utf-8", "surrogatepass"
                    )
                told += share * batch.num_rows
                progress(int(told))
                told -= int(told)
    except errors as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's, and not pyarrow's for what it cannot decode
        reason = " ".join(str(error).split())
        raise BadDataError(f"cannot be read on as parquet: {reason:.200}", where=path) from None


def _pyarrow() -> tuple[Any, tuple[type[Exception], ...]]:
    """Return pyarrow's part for parquet, and what it raises for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError(
            "the package pyarrow is not installed", "pip install 'flmgrow[parquet]'"
        ) from None
    return parquet, (pyarrow.ArrowException, OSError)
