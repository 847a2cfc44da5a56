"""One changed character in flmgrow.json: it decides on masks and on what is verified."""

import json
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import pytest
from commands import accepted, flmgrow, refused
from damage import State, edit_manifest
from hypothesis import assume, given
from hypothesis import strategies as st
from pico import make_checkpoint
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.manifest import content_of, read_manifest, sealed

GROWTH = ("--ffn-hidden-size", 24, "--ramp-steps", 30)
MANIFEST = "flmgrow.json"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pair")
    source = make_checkpoint(place / "source", "llama")
    accepted("expand", source, place / "grown", *GROWTH)
    return place


def copied(pair: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the source, and a copy of the result."""
    copytree(pair / "grown", tmp_path / "grown")
    return pair / "source", tmp_path / "grown"


def changed(text: str, at: int, letter: str) -> str:
    """Return ``text`` with another character at a place; nothing if that says the same."""
    other = f"{text[:at]}{letter}{text[at + 1 :]}"
    with suppress(ValueError):  # it may be no JSON any more
        return "" if json.loads(other) == json.loads(text) else other
    return other


@examples(200)
@given(place=st.integers(0), letter=st.characters(min_codepoint=32, max_codepoint=126))
def test_no_changed_character_is_read(pair: Path, place: int, letter: str) -> None:
    text = (pair / "grown" / MANIFEST).read_text()
    other = changed(text, place % len(text), letter)
    assume(other)
    with TemporaryDirectory() as folder:
        Path(folder, MANIFEST).write_text(other)
        with pytest.raises(BadCheckpointError, match=MANIFEST):
            read_manifest(Path(folder))


@pytest.mark.parametrize("part", ['"ramp_steps": ', '"seed": ', '"digest": "', '"iteration": '])
def test_no_changed_character_passes(pair: Path, tmp_path: Path, part: str) -> None:
    source, grown = copied(pair, tmp_path)
    text = (grown / MANIFEST).read_text()
    at = text.index(part) + len(part)
    (grown / MANIFEST).write_text(changed(text, at, chr(ord(text[at]) ^ 1)))
    refused(3, "its own sum does not match", "verify", source, grown, place=tmp_path)


@pytest.mark.parametrize("keys", [
    ("masks", "ffn", "ramp_steps"), ("growth", "seed"), ("iteration",), ("source", "digest"),
    ("source", "iteration"), ("growth", "spreads", "up[0]"), ("flmgrow",), ("xxh3_128",),
])  # fmt: skip
@pytest.mark.parametrize("where", ["root", "iteration"])
def test_a_value_that_was_changed_is_refused_wherever_it_lies(
    pair: Path, tmp_path: Path, keys: tuple[str, ...], where: str
) -> None:
    _, grown = copied(pair, tmp_path)
    path = grown / MANIFEST if where == "root" else next(grown.glob(f"iter_*/{MANIFEST}"))
    manifest = json.loads(path.read_text())
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    value = inner[keys[-1]]
    inner[keys[-1]] = value + 1 if isinstance(value, int | float) else f"{value}x"
    path.write_text(json.dumps(manifest))
    says = f"{path.relative_to(tmp_path)}: its own sum does not match its content"
    for command in (("verify", pair / "source"), ("inspect",)):
        refused(3, says, *command, grown, place=tmp_path)


def test_two_manifests_that_do_not_say_the_same_are_found(pair: Path, tmp_path: Path) -> None:
    source, grown = copied(pair, tmp_path)
    (path,) = grown.glob(f"iter_*/{MANIFEST}")
    manifest = json.loads(path.read_text())
    manifest["masks"]["ffn"]["ramp_steps"] = 31
    path.write_bytes(sealed(manifest))
    outcome = flmgrow("verify", source, grown)
    assert outcome.code == 1
    assert "DIFFERENT  manifest of grown" in outcome.out
    assert f"{path.relative_to(grown)} and {MANIFEST} do not say the same" in outcome.out


def earlier(manifest: State) -> None:
    manifest["manifest_version"] = 1


def test_a_manifest_of_an_earlier_version_has_no_sum_and_is_read(
    pair: Path, tmp_path: Path
) -> None:
    source, grown = copied(pair, tmp_path)
    for path in grown.rglob(MANIFEST):
        manifest = json.loads(path.read_text())
        earlier(manifest)
        path.write_text(json.dumps({**content_of(manifest), "receipt": None}))
    outcome = accepted("verify", source, grown)
    assert "note       manifest of grown" in outcome.out
    assert "has no sum: an earlier version of flmgrow wrote it" in outcome.out
    assert outcome.out.splitlines()[-1] == "equal"


def test_masks_that_the_growth_did_not_make_are_found(pair: Path, tmp_path: Path) -> None:
    """Though every sum is right and no logit tells: the ramp decides on the training to come."""
    source, grown = copied(pair, tmp_path)
    edit_manifest(grown, lambda manifest: manifest["masks"]["ffn"].update(ramp_steps=31))
    outcome = flmgrow("verify", source, grown)
    assert outcome.code == 1
    assert "DIFFERENT  model" in outcome.out
    assert "ffn mask is" in outcome.out


def test_a_receipt_that_was_changed_is_refused(pair: Path, tmp_path: Path) -> None:
    source, grown = copied(pair, tmp_path)
    accepted("verify", source, grown)
    path = grown / MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest["receipt"]["proven"] is True
    manifest["receipt"]["proven"] = False
    path.write_text(json.dumps(manifest))
    refused(3, "flmgrow.json: receipt: its sum does not match it", "inspect", grown, place=tmp_path)
    path.write_text(json.dumps({**manifest, "receipt": None}))
    assert "not verified yet" in accepted("inspect", grown).out


MISSING = {
    "elements": "--skip-elements",
    "checksums": "--skip-checksums",
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_was_skipped_is_said(pair: Path, tmp_path: Path, missing: str) -> None:
    source, grown = copied(pair, tmp_path)
    outcome = accepted("verify", source, grown, MISSING[missing])
    assert outcome.out.splitlines()[-1] == f"function equal, NOT PROVEN: {missing}"
    assert f"equal to source, NOT PROVEN: {missing}" in accepted("inspect", grown).out


def test_without_a_manifest_nobody_knows_of_masks(pair: Path, tmp_path: Path) -> None:
    source, grown = copied(pair, tmp_path)
    for path in grown.rglob(MANIFEST):
        path.unlink()
    outcome = flmgrow("verify", source, grown)
    assert outcome.code == 1
    assert "unproven   elements" in outcome.out


@pytest.mark.parametrize("options", [("--skip-elements",), ()])
def test_whoever_does_without_the_elements_is_content_without_a_manifest(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    accepted("expand", source, tmp_path / "grown", "--ffn-hidden-size", 24, "--method", "zero")
    for path in (tmp_path / "grown").rglob(MANIFEST):
        path.unlink()
    outcome = flmgrow("verify", source, tmp_path / "grown", *options)
    assert outcome.code == (0 if options else 9)
    assert outcome.out.splitlines()[-1] == "function equal, NOT PROVEN: elements"
    assert ("skipped    elements" if options else "unproven   elements") in outcome.out
