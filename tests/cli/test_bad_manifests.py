"""flmgrow.json decides on masks and on what is verified: nothing in it is believed unchecked."""

import json
import shutil
from pathlib import Path

import pytest
from commands import accepted, check_lines, flmgrow, refused
from damage import Change, State, edit_manifest
from pico import CONFIGS, even, make_checkpoint

from flmgrow.formats.history.manifest import family, masks_of
from flmgrow.formats.opening import open_checkpoint


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    source = make_checkpoint(tmp_path / "source", "llama", even(CONFIGS["llama"], tp=2))
    accepted("expand", source, tmp_path / "grown", "--ffn-hidden-size", 24)
    return tmp_path / "grown"


def everywhere_refused(grown: Path, pattern: str) -> None:
    """Whatever reads a manifest refuses this one."""
    place = grown.parent
    refused(3, pattern, "verify", place / "source", grown, place=place)
    for command in ("reshard", "bake", "expand"):
        refused(3, pattern, command, grown, place / "out", place=place)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not readable"),
        (b"{", "not readable"),
        (b"\xff\xfe", "not readable"),
        (b"[" * 200_000, "not readable"),
        (b'{"manifest_version": ' + b"1" * 5000 + b"}", "not readable"),
        (b"[]", "not a manifest of version 2"),
        (b'{"manifest_version": 3}', "not a manifest of version 2"),
        (b'{"manifest_version": 2}', "parameters: is not given"),
        (b'{"manifest_version": 1}', "parameters: is not given"),
    ],
    ids=["empty", "cut", "binary", "deep", "long number", "list", "newer", "bare", "bare, old"],
)
def test_a_manifest_that_is_none_is_refused(grown: Path, content: bytes, says: str) -> None:
    (grown / "flmgrow.json").write_bytes(content)
    everywhere_refused(grown, f"grown/flmgrow.json: {says}")
    refused(3, says, "inspect", grown, place=grown.parent)


def test_a_manifest_of_enormous_size_is_not_read(grown: Path) -> None:
    with (grown / "flmgrow.json").open("ab") as file:
        file.truncate(1 << 40)
    outcome = flmgrow("inspect", grown)
    assert outcome.code == 3
    check_lines(outcome.err, "flmgrow.json: has [0-9]+ bytes, wanted at most")


def put(*keys: str | int, value: object) -> Change:
    """Return the change that sets one value deep inside."""

    def change(manifest: State) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]  # type: ignore[index]
        inner[keys[-1]] = value  # type: ignore[index]

    return change


def without(key: str) -> Change:
    return lambda manifest: manifest.pop(key)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("source"), "source: is not given"),
        (without("growth"), "growth: is not given"),
        (put("source", value="here"), "source: found .*, wanted "),
        (put("source", "family", value=[3]), "source.family.0: found .*, wanted "),
        (put("receipt", value=3), "receipt: found .*, wanted "),
        (put("files", value=3), "files: found .*, wanted "),
        (put("files", 0, "path", value=3), "files.0.path: found .*, wanted "),
        (put("files", 0, "size", value="1"), "files.0.size: found .*, wanted "),
        (put("options", value=None), "options: found .*, wanted "),
        (put("options", "init_std", value=float("nan")), "options.init_std: found .*, wanted "),
        (put("padded_vocab", value=1 << 40), "padded_vocab: found .*, wanted less"),
        (put("masks", value=[1]), "masks: found .*, wanted "),
        (put("masks", "\x1b[31m", value={}), r"\\x1b\[31m' is not a valid Dimension"),
        (put("masks", "ffn", "value", value=7), "ffn mask: value 7.0, wanted 0 to 1"),
        (put("masks", "ffn", "value", value=float("nan")), "ffn mask: value nan"),
        (put("masks", "ffn", "ramp_steps", value=-1), "ffn mask: not in the form"),
        (put("masks", "ffn", "fresh", value={"vocab": [[1, 2]]}), "ffn mask: axes vocab"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_of_another_form_is_refused(grown: Path, change: Change, says: str) -> None:
    edit_manifest(grown, change)
    everywhere_refused(grown, f"grown/flmgrow.json: .*{says}")
    refused(3, says, "inspect", grown, place=grown.parent)


@pytest.mark.parametrize(
    "spans",
    [
        [[-4, 2]], [[0, 1 << 40]], [[0, 1 << 24]] * 30, [[0.5, 1.5]], [[3, 2]], [[1, 2, 3]], [4],
        [["0", "4"]], [[20, 22], [21, 24]],
    ],
)  # fmt: skip
def test_fresh_indices_that_no_unit_has_are_refused(grown: Path, spans: object) -> None:
    edit_manifest(grown, put("masks", "ffn", "fresh", "ffn", value=spans))
    everywhere_refused(grown, "grown/flmgrow.json: ffn mask: not in the form flmgrow writes")


def test_fresh_indices_beyond_the_model_are_refused(grown: Path) -> None:
    edit_manifest(grown, put("masks", "ffn", "fresh", "ffn", value=[[20, 25]]))
    everywhere_refused(grown, "ffn mask: index 24 is too large")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("growth", "request", "ffn", value=8), "ffn: wanted 8, the source has 20"),
        (put("growth", "request", "ffn", value=1 << 40), "ffn: wanted .*, at most"),
        (put("growth", "request", "ffn", value="x"), "request is malformed"),
        (put("growth", "request", "methods", "ffn", value="none"), "'none' is no method for ffn"),
        (put("growth", "axes", "ffn", value=[]), "axis maps do not follow"),
        (put("padded_vocab", value=51), "axis maps do not follow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_growth_that_cannot_have_been_is_refused_by_verify(
    grown: Path, change: Change, says: str
) -> None:
    edit_manifest(grown, change)
    place = grown.parent
    refused(3, f"flmgrow.json: .*{says}", "verify", place / "source", grown, place=place)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "\x1b[31mno"])
def test_files_outside_the_folder_are_not_looked_at(grown: Path, path: str) -> None:
    edit_manifest(grown, put("files", 0, "path", value=path))
    outcome = flmgrow("verify", grown.parent / "source", grown)
    assert outcome.code == 1
    assert "DIFFERENT  checksums of grown" in outcome.out
    assert "outside the folder" in outcome.out or "missing" in outcome.out
    assert "\x1b" not in outcome.out


def test_hostile_names_in_a_family_come_out_escaped(grown: Path) -> None:
    edit_manifest(grown, put("source", "name", value="\x1b[31mmother\n"))
    found = accepted("inspect", grown).out
    assert r"\x1b[31mmother\n" in found
    assert "\x1b" not in found


def test_an_iteration_that_is_moved_alone_keeps_its_masks(grown: Path) -> None:
    moved = grown.parent / "moved"
    (folder,) = (path for path in grown.iterdir() if path.is_dir())
    shutil.copytree(folder, moved / folder.name)
    shutil.copy(grown / "latest_checkpointed_iteration.txt", moved)
    with open_checkpoint(grown) as one, open_checkpoint(moved) as other:
        assert masks_of(one)
        assert json.dumps([m.to_json() for m in masks_of(other).values()]) == json.dumps(
            [m.to_json() for m in masks_of(one).values()]
        )
        assert len(family(other)) == len(family(one)) == 2
    accepted("verify", grown.parent / "source", moved)
    assert json.loads((moved / "flmgrow.json").read_bytes())["receipt"]["equal"] is True


@pytest.mark.parametrize("command", ["expand", "export"])
def test_what_cannot_be_baked_is_not_to_be_baked(tmp_path: Path, command: str) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    accepted("expand", source, tmp_path / "wide", "--hidden-size", 24)
    words = (command, tmp_path / "wide", tmp_path / "out")
    more = ("--num-layers", 6) if command == "expand" else ()
    says = r"(masks|growth) \(width at 0\).*finish the ramp: train on"
    assert "flmgrow bake" not in refused(2, says, *words, *more, place=tmp_path).err


def test_a_source_whose_masks_are_still_opening_grows_no_further(grown: Path) -> None:
    says = r"still opening its last growth \(ffn at 0\).*flmgrow bake"
    command = ("expand", grown, grown.parent / "out", "--num-layers", 6)
    refused(2, says, *command, place=grown.parent)
