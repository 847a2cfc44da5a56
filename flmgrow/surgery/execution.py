"""How a plan is carried out: memory, workers, ranks, and what is done about damage.

None of it decides on the result, but for a spread that is given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flmgrow.errors import (
    UsageError,
)
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.operators.choices import hold
from flmgrow.storage.world import ALONE, World
from flmgrow.surgery.replicas import Replicated, replicated_as
from flmgrow.text import Setting, Text

Progress = Callable[[int], None]
BASE_MEMORY = 160 << 20
"""What the process needs before the first block: interpreter, libraries, headers."""
BYTES_PER_ELEMENT = 72
"""Peak bytes of temporaries per element of a block being computed (float64 values, draws,
hashes).
"""
MIN_BLOCK = 1 << 14
MAX_BLOCK = 1 << 19


@dataclass(frozen=True)
class Execution:
    """How to carry out a plan; none of it changes the result, but for ``init_std``.

    ``max_memory`` is in bytes. ``replicated`` is ``check`` or ``rank0``. ``restart`` drops a
    half-done run of another plan, and ``double_check`` reads the output back from the disk.
    ``progress`` is told bytes as they are written, on rank 0 those of all ranks of ``world``, which
    share the work. ``beside`` makes small files out of the manifest, which are written with it and
    have no checksum in it.
    """

    max_memory: int = 1 << 30
    workers: int = 1
    restart: bool = False
    double_check: bool = True
    allow_nonfinite: bool = False
    replicated: Replicated = Replicated.CHECK
    init_std: float | None = None
    progress: Progress = lambda _: None
    beside: Callable[[Manifest], Mapping[str, bytes]] = lambda _: {}
    world: World = ALONE

    def __post_init__(self) -> None:
        hold(self, replicated=replicated_as(self.replicated))
        check_whole("workers", self.workers)
        check_whole("max memory", self.max_memory)
        if self.init_std is not None:
            check_finite("init std", self.init_std, least=0)

    @property
    def block_elements(self) -> int:
        """Elements per block, so that all blocks in flight fit the budget."""
        spare = self.max_memory - BASE_MEMORY
        elements = spare // (BYTES_PER_ELEMENT * (self.workers + 1))
        if elements < MIN_BLOCK:
            needed = BASE_MEMORY + MIN_BLOCK * BYTES_PER_ELEMENT * (self.workers + 1)
            raise UsageError(
                Text(
                    Setting("max_memory"),
                    f" is {self.max_memory >> 20} MiB, {self.workers} workers need at least "
                    f"{-(-needed >> 20)} MiB",
                ),
                "give more memory or fewer workers",
            )
        return min(elements, MAX_BLOCK)
