"""The figures in ``docs/concepts/exactness.md`` must be anybody's to reproduce.

For each architecture of ``tests/support/pico_model.py``, in float64, every dimension is grown at
once by
one method, into another layout, and the logits are compared. This prints the table.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from growing import checkpoint_logits, grow_checkpoint, tokens_for
from pico import CONFIGS, make_checkpoint

from flmgrow.errors import UsageError
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

GROWTHS = {
    "width=mask": "width=mask,ffn=mask,heads=mask,depth=mask",
    "width=zero": "width=zero,ffn=zero,heads=zero,depth=zero",
    "width=copy": "width=copy,ffn=copy,heads=copy,depth=copy",
}


def measure(name: str, method: str, folder: Path) -> str:
    """Return the largest difference of logits for one architecture and method."""
    config = CONFIGS[name]
    source = make_checkpoint(folder / "source", name)
    target = Target(
        layers=6,
        hidden=28,
        ffn=32,
        heads=6 * config.queries_per_group,
        kv_groups=6,
        methods=parse_methods(method),
    )
    try:
        grow_checkpoint(source, folder / "result", target, LayoutRequest(tp=2, pp=2))
    except UsageError:
        return "refused"
    tokens = tokens_for(config.vocab)
    old, new = (checkpoint_logits(folder / path, tokens) for path in ("source", "result"))
    return f"{(new[..., : config.vocab] - old).abs().max().item():.0e}"


def main() -> None:
    """Print the table."""
    print("| model | norm | activation | positions | head | mask | zero | copy |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config in CONFIGS.items():
        found = []
        for method in GROWTHS.values():
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(name, method, Path(folder)))
        kind = [config.norm, config.activation, config.positions]
        head = "tied" if config.tied else "separate"
        print(f"| {' | '.join([name, *kind, head, *found])} |")


if __name__ == "__main__":
    main()
