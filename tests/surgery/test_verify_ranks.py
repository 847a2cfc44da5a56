"""Evidence is the same however many ranks have gathered it, and whatever is wrong."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from growing import grow_checkpoint
from pico import make_checkpoint
from pico_dist import make_dist_checkpoint
from ranks_of import in_threads
from sampling import first

from flmgrow.formats.opening import open_checkpoint
from flmgrow.operators.target import Target, parse_methods
from flmgrow.storage.ranks import meeting
from flmgrow.storage.world import World
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.integrity import check_integrity
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.verify import Verification, verify

HOW = Verification(seed=3)


def grown(path: Path) -> tuple[Path, Path]:
    source = make_checkpoint(path / "a", "llama", optimizer=True)
    target = Target(layers=6, ffn=34, methods=parse_methods("zero"))
    grow_checkpoint(source, path / "b", target, LayoutRequest(tp=2, pp=2))
    return source, path / "b"


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 1
    file.write_bytes(bytes(content))


def without_manifest(path: Path) -> tuple[Path, Path]:
    source, result = grown(path)
    for file in result.rglob("flmgrow.json"):
        file.unlink()
    return source, result


def damaged(path: Path) -> tuple[Path, Path]:
    source, result = grown(path)
    for file, place in zip(sorted(result.rglob("*.pt"))[1:], (0.5, 0.3, 0.6), strict=True):
        flip(file, place)
    return source, result


def another(path: Path) -> tuple[Path, Path]:
    """Made with other values behind the manifest's back: sums are right, elements are not."""
    source, result = grown(path)
    other = make_checkpoint(path / "c", "llama", optimizer=True, seed=5)
    target = Target(layers=6, ffn=34, methods=parse_methods("zero"))
    grow_checkpoint(other, path / "d", target, LayoutRequest(tp=2, pp=2))
    for file in result.rglob("*.pt"):
        file.write_bytes((path / "d" / file.relative_to(result)).read_bytes())
    return source, result


def dist(path: Path) -> tuple[Path, Path]:
    source = make_dist_checkpoint(path, "llama", 2)
    grow_checkpoint(source, path / "b", request=LayoutRequest(4, 1))
    return source, path / "b"


def evidence(source: Path, result: Path, world: World, how: Verification = HOW) -> list[Check]:
    place = result.parent / ".meeting"
    with (
        open_checkpoint(source) as old,
        open_checkpoint(result) as new,
        meeting(place, world) as ranks,
    ):
        ranks.meet("verify")
        return verify(old, new, replace(how, ranks=ranks))


def integrity(result: Path, world: World) -> list[Check]:
    with (
        open_checkpoint(result) as opened,
        meeting(result.parent / ".meeting", world) as ranks,
    ):
        ranks.meet("integrity")
        return check_integrity(opened, lambda _: None, ranks)


def plain(check: Check) -> tuple[object, ...]:
    return check.name, check.passed, check.detail, check.missing, repr(dict(check.numbers))


@pytest.mark.parametrize("make", first(3, [grown, damaged, dist, without_manifest, another]))
def test_any_number_of_ranks_finds_the_same(
    make: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, result = make(tmp_path)
    unsummed = [] if make is damaged else [replace(HOW, checksums=False)]
    for how in (HOW, *unsummed):
        alone = [plain(check) for check in evidence(source, result, World(), how)]
        for size in (2, 3):
            for checks in in_threads(size, partial(evidence, source, result, how=how)):
                assert [plain(check) for check in checks] == alone
    assert not (tmp_path / ".meeting").exists()


@pytest.mark.parametrize("make", [grown, damaged, dist])
def test_integrity_is_the_same(make: Callable[[Path], tuple[Path, Path]], tmp_path: Path) -> None:
    _, result = make(tmp_path)
    alone = [plain(check) for check in integrity(result, World())]
    for checks in in_threads(3, lambda world: integrity(result, world)):
        assert [plain(check) for check in checks] == alone


def test_what_was_compared_is_not_all_alike(tmp_path: Path) -> None:
    failed = []
    for make in (grown, damaged, another):
        (tmp_path / make.__name__).mkdir()
        checks = evidence(*make(tmp_path / make.__name__), World())
        failed.append({check.name.partition(" ")[0] for check in checks if check.passed is False})
    assert failed[0] == set()
    assert failed[1] == {"checksums"}
    assert failed[2]
