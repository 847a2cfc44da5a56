"""Whether the ranks of a legacy checkpoint belong together, and are all there."""

from collections.abc import Collection, Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.names import FEATURES, UNCLEAR, UNDERSTOOD
from flmgrow.formats.megatron.arguments.run_rows import DTYPE
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.folders import RankKey
from flmgrow.formats.megatron.legacy.contents import content_of
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import enum_value
from flmgrow.formats.torch_file.values import Opaque

_MUST_AGREE = UNDERSTOOD | FEATURES.keys() | UNCLEAR | {DTYPE.name}


def arguments_of(file: TorchFile) -> dict[str, object]:
    """Return the arguments in a rank's file.

    Raises:
        BadCheckpointError: There are none, or they are damaged.
    """
    return arguments_in(content_of(file), str(file.file.path))


def check_agreement(files: Mapping[RankKey, TorchFile], given: Collection[str]) -> None:
    """Check that all ranks are from one run and one iteration, whatever their ``given`` arguments.

    Raises:
        BadCheckpointError: They are not; the message names what differs.
    """
    first = next(iter(files.values()))
    without = not any("args" in content_of(file) for file in files.values())
    reference = {} if without else arguments_of(first)
    iterations: dict[str, list[str]] = {}
    for file in files.values():
        arguments = {} if without else arguments_of(file)
        odd = [
            f"args.{name} is {shown(arguments.get(name))}, not {shown(reference.get(name))}"
            for name in sorted(_MUST_AGREE - set(given))
            if not _agree(reference.get(name), arguments.get(name))
        ]
        if odd:
            raise BadCheckpointError(
                f"unlike {first.file.path.parent.name}: {', '.join(odd)}",
                "ranks of one checkpoint must agree; this looks like two runs mixed up",
                where=file.file.path,
            )
        number = shown(content_of(file).get("iteration"))
        iterations.setdefault(number, []).append(file.file.path.parent.name)
    if len(iterations) > 1:
        table = "; ".join(f"{number}: {', '.join(ranks)}" for number, ranks in iterations.items())
        raise BadCheckpointError(
            f"ranks are from different iterations: {table}",
            "copy the rank folders again, all from one iteration",
            where=first.file.path.parents[1],
        )


def check_ranks(folder: Path, ranks: Collection[RankKey], layout: Layout) -> None:
    """Raise BadCheckpointError unless ``ranks`` are those of the layout."""
    wanted = set(layout.ranks)
    for problem, odd in (("missing", wanted - set(ranks)), ("unexpected", set(ranks) - wanted)):
        if odd:
            names = ", ".join(f"(TP {t}, PP {p})" for t, p in sorted(odd))
            raise BadCheckpointError(
                f"{problem} ranks {names}; args say TP{layout.tp} x PP{layout.pp}",
                "copy all rank folders of the iteration" if problem == "missing" else "",
                where=folder,
            )


def _agree(a: object, b: object) -> bool:
    """Whether two values of an argument are the same; that none of them is NaN is seen to later."""
    if isinstance(a, Opaque) and isinstance(b, Opaque):
        return (a.function, enum_value(a)) == (b.function, enum_value(b))
    return a == b or a != a
