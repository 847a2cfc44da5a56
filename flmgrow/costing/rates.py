"""What operations cost: hours, money, energy and carbon, from what somebody knows of a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

from flmgrow.costing.accelerators import ACCELERATORS, Accelerator
from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.text import Setting, Text

SUPPOSED_UTILISATION = 0.4
"""Of a device's peak, where nobody says what it is."""

HOUR = 3600

MOST_GPUS = 10**9


@dataclass(frozen=True)
class Bill:
    """What some operations cost. ``dollars`` and ``tonnes`` (of CO2) are None without their rates.

    ``hours`` are those of devices, ``days`` those of the calendar, ``energy`` is in MWh.
    """

    hours: float
    days: float
    energy: float
    dollars: float | None
    tonnes: float | None

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(
            self.hours + other.hours,
            self.days + other.days,
            self.energy + other.energy,
            _sum(self.dollars, other.dollars),
            _sum(self.tonnes, other.tonnes),
        )

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by name, each with its unit."""
        return {
            "gpu_hours": self.hours,
            "days": self.days,
            "energy_mwh": self.energy,
            "dollars": self.dollars,
            "co2_tonnes": self.tonnes,
        }


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True)
class Rates:
    """A cluster and its prices.

    ``utilisations`` are shares of the device's peak (0 to 1) that model operations reach: one for
    all stages, or one for each; none is ``SUPPOSED_UTILISATION``. ``gpus`` is how many devices
    there are, that of each stage's ranks if None. ``price`` is in dollars per device hour,
    ``carbon`` in kg CO2 per kWh, ``overhead`` what a data centre draws for each watt of its devices
    (its power usage effectiveness). ``storage`` is what its file system moves, in bytes per second.

    Raises:
        UsageError: For what cannot be.
    """

    accelerator: Accelerator = ACCELERATORS["A100"]
    utilisations: Sequence[float] = ()
    gpus: int | None = None
    price: float | None = None
    carbon: float | None = None
    overhead: float = 1.0
    storage: float = float(1 << 30)

    def __post_init__(self) -> None:
        for share in self.utilisations:
            check_finite("utilisation", share, above=0)
            if share > 1:
                raise UsageError(
                    Text(Setting("utilisation"), f" {share:g}"),
                    wanted="a share of the peak, at most 1",
                )
        if self.gpus is not None:
            check_whole("gpus", self.gpus)
            if self.gpus > MOST_GPUS:
                raise UsageError(
                    Text(Setting("gpus"), " is more than there are"),
                    wanted=f"at most {MOST_GPUS:,}",
                )
        for name in ("price", "carbon"):
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name), least=0)
        check_finite("overhead", self.overhead, least=1)
        check_finite("storage", self.storage, above=0)

    def utilisation(self, number: int) -> float:
        """Return the utilisation of a stage, counted from 0; the last one given holds on."""
        if not self.utilisations:
            return SUPPOSED_UTILISATION
        return self.utilisations[min(number, len(self.utilisations) - 1)]

    def bill(self, operations: float, precision: str, gpus: int, utilisation: float) -> Bill:
        """Return what ``operations`` cost on ``gpus`` devices at a ``utilisation``."""
        per_second = self.accelerator.peak(precision) * utilisation
        return self.bill_of_hours(operations / per_second / HOUR, gpus)

    def bill_of_hours(self, hours: float, gpus: int) -> Bill:
        """Return what so many device hours cost, on ``gpus`` devices at once."""
        energy = hours * self.accelerator.watts * self.overhead / 1e6
        return Bill(
            hours,
            hours / 24 / gpus,
            energy,
            None if self.price is None else hours * self.price,
            None if self.carbon is None else energy * self.carbon,
        )
