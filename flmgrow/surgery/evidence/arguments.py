"""Arguments: a result must say what model it is; a wrong epsilon hides in rounding."""

from dataclasses import asdict

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check


def check_model(result: Checkpoint, growth: Growth) -> Check:
    """The result's arguments must describe the model the growth leads to."""
    wanted, found = asdict(growth.new), asdict(result.config)
    wrong = [
        f"{name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if wanted[name] != found[name]
    ]
    return Check(
        "model", not wrong, "; ".join(wrong) or "the arguments say what the growth leads to"
    )
