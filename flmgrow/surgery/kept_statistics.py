"""Spreads and means that an interrupted run has found, kept for the one that goes on with it.

Some of them take a pass over a whole tensor, which a resumed run need not repeat. They lie beside
the journal, in a file for each rank and launch, one line each with a checksum of its own. The first
line says of which plan they are, and so of which source: lines of another one do not count. They
are worth a pass over the source and no more: nothing is fsynced, and what cannot be written or read
is found anew.
"""

import base64
import contextlib
import json
import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from flmgrow.model.arrays import FloatArray
from flmgrow.storage.journal import as_line, record_in

NAME = "statistics"
MOST_BYTES = 1 << 20
"""Larger values are not kept: to find them again is to read little more than they are."""


class KeptStatistics:
    """The values by key; made for one ``plan`` in the private folder of its run, and closed."""

    def __init__(self, folder: Path, plan: Mapping[str, object]) -> None:
        self._plan = xxhash.xxh3_128_hexdigest(json.dumps(plan, sort_keys=True).encode())
        self._lock = threading.Lock()
        self._found: dict[str, FloatArray] = {}
        self._file = -1
        self._path = folder / f"{NAME}.{secrets.token_hex(8)}"
        for path in sorted(folder.glob(f"{NAME}.*")):
            with contextlib.suppress(OSError):
                self._read(path.read_bytes())

    def _read(self, content: bytes) -> None:
        first, *lines = [record_in(line) for line in content.splitlines(keepends=True)] or [None]
        if first == {"plan": self._plan}:
            for record in lines:
                if record is None:  # torn, or damaged
                    return
                data = base64.b64decode(str(record["float64"]))
                values = np.frombuffer(data, np.float64)
                self._found[str(record["key"])] = values.reshape(record["shape"])  # type: ignore[call-overload]

    def get(self, key: str) -> FloatArray | None:
        """Return what was found under ``key``, in its shape, if an earlier run kept it."""
        return self._found.get(key)

    def add(self, key: str, values: FloatArray) -> None:
        """Keep what was found, of any shape, if the file system lets it."""
        if values.nbytes > MOST_BYTES:
            return
        data = base64.b64encode(np.ascontiguousarray(values, np.float64).tobytes()).decode()
        line = as_line({"key": key, "shape": list(values.shape), "float64": data})
        with self._lock, contextlib.suppress(OSError):
            if self._file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
                line = as_line({"plan": self._plan}) + line
            os.write(self._file, line)

    def close(self) -> None:
        """Close the file."""
        with self._lock, contextlib.suppress(OSError):
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
