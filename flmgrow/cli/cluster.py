"""What a command line says of a cluster: its devices, what they reach, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli.parsing import parse_size
from flmgrow.errors import UsageError
from flmgrow.given import ClusterGiven

_CLUSTER = "What is known of the cluster"
_DEVICE = "A device that is not in the table"


def _option(metavar: str, told: str, panel: str = _CLUSTER) -> object:
    return typer.Option(metavar=metavar, help=told, rich_help_panel=panel)


@dataclass
class Cluster:
    """The options that say what is known of a cluster."""

    accelerator: Annotated[
        str, _option("NAME", "Its devices: A100, A800, H100, H200, B200, MI300X ...")
    ] = "A100"
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Devices; as many as a stage has ranks if not given.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None
    utilisation: Annotated[
        str | None,
        _option(
            "SHARE[,SHARE...]",
            "Of the peak, by the operations of the model: one for all stages, or one for each.",
        ),
    ] = None
    calibrate: Annotated[
        Path | None, _option("RUN", "Take the utilisation from this run's own metrics.")
    ] = None
    price: Annotated[float | None, _option("DOLLARS", "Of a device for an hour.")] = None
    carbon: Annotated[float | None, _option("KG", "CO2 for each kWh.")] = None
    overhead: Annotated[
        float, _option("FACTOR", "What the data centre draws, over what its devices draw.")
    ] = 1.0
    storage: Annotated[str, _option("SIZE", "What the file system moves in a second.")] = "1G"
    peak_tflops: Annotated[
        float | None,
        _option("NUMBER", "1e12 operations per second, in the stages' precision.", _DEVICE),
    ] = None
    watts: Annotated[float | None, _option("NUMBER", "Its thermal design power.", _DEVICE)] = None
    memory: Annotated[str | None, _option("SIZE", "Its memory.", _DEVICE)] = None

    def given(self) -> ClusterGiven:
        """Return what is said.

        Raises:
            UsageError: For what is no number.
        """
        return {
            "accelerator": self.accelerator,
            "gpus": self.gpus,
            "utilisation": _numbers(self.utilisation),
            "calibrate": self.calibrate,
            "price": self.price,
            "carbon": self.carbon,
            "overhead": self.overhead,
            "storage": float(parse_size(self.storage, "--storage")),
            "peak_tflops": self.peak_tflops,
            "watts": self.watts,
            "memory": None if self.memory is None else float(parse_size(self.memory, "--memory")),
        }


def _numbers(text: str | None) -> Sequence[float] | None:
    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(
            f"--utilisation {text}: not a list of numbers", "such as 0.52, or 0.519,0.513,0.529"
        ) from None
