"""Accelerators as a table: what one of them computes per second, holds, and draws.

Peaks are those of dense matrix products as the vendors' data sheets give them; where a sheet prints
figures with sparsity, half of them. What the sheets call a GB of memory is a GiB.
"""

from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite
from flmgrow.text import Setting, Text

GIB = float(1 << 30)


@dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Peaks are in 1e12 operations per second: ``bfloat16`` products, and ``float32`` weights as
    matrix units take them (TF32 where there is such a thing). ``memory`` is in bytes, ``watts`` the
    board's thermal design power.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    watts: float

    def __post_init__(self) -> None:
        for name in ("bfloat16", "float32", "memory", "watts"):
            check_finite(name, getattr(self, name), above=0)

    def peak(self, precision: str) -> float:
        """Return the operations per second in the precision of a stage."""
        return 1e12 * (self.bfloat16 if precision == "bfloat16" else self.float32)


ACCELERATORS = {
    each.name: each
    for each in (
        Accelerator("A100-40G", 312, 156, 40 * GIB, 400),
        Accelerator("A100", 312, 156, 80 * GIB, 400),
        Accelerator("A800", 312, 156, 80 * GIB, 400),
        Accelerator("H100", 989.4, 494.7, 80 * GIB, 700),
        Accelerator("H800", 989.4, 494.7, 80 * GIB, 700),
        Accelerator("H20", 148, 74, 96 * GIB, 400),
        Accelerator("H200", 989.4, 494.7, 140 * GIB, 700),
        Accelerator("B200", 2250, 1100, 180 * GIB, 1000),
        Accelerator("GB200", 2500, 1250, 186 * GIB, 1200),
        Accelerator("L40S", 362, 183, 48 * GIB, 350),
        Accelerator("RTX4090", 165.2, 82.6, 24 * GIB, 450),
        Accelerator("MI250X", 383, 95.7, 128 * GIB, 560),
        Accelerator("MI300X", 1307.4, 653.7, 192 * GIB, 750),
    )
}


def accelerator(name: str) -> Accelerator:
    """Return the accelerator of that name, in capitals or not.

    Raises:
        UsageError: For another.
    """
    found = {key.lower(): each for key, each in ACCELERATORS.items()}.get(name.lower())
    if found is None:
        raise UsageError(
            Text(Setting("accelerator"), f" {name}: not in the table"),
            Text(
                f"one of {', '.join(ACCELERATORS)}; for another one take a known one and give ",
                Setting("peak_tflops"),
                ", ",
                Setting("watts"),
                " and ",
                Setting("memory"),
            ),
        )
    return found
