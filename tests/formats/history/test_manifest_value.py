"""A manifest is a value, and its file is what it was: older and newer ones, too."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from commands import accepted
from pico import make_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.manifest import MANIFEST, encode, lineage, read_manifest, sealed
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.history.parts import Member, Receipt

State = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, what grew out of it, verified, and what grew out of that."""
    place = tmp_path_factory.mktemp("place")
    make_checkpoint(place / "a", "llama")
    accepted("expand", place / "a", place / "b", "--ffn-hidden-size", 24, "--method", "zero")
    accepted("verify", place / "a", place / "b")
    accepted("expand", place / "b", place / "c", "--num-layers", 6, "--method", "zero")
    return place


def at(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


@pytest.fixture
def plain(place: Path) -> State:
    data: State = json.loads((place / "c" / MANIFEST).read_bytes())
    return data


def kept(tmp_path: Path, data: State) -> Manifest:
    """Return a manifest that was written and read."""
    (tmp_path / MANIFEST).write_bytes(sealed(data))
    return at(tmp_path)


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_file_that_was_read_is_written_as_it_was(place: Path, name: str) -> None:
    assert encode(at(place / name)) == (place / name / MANIFEST).read_bytes()


def test_it_is_a_value(place: Path) -> None:
    b, c = at(place / "b"), at(place / "c")
    assert c == at(place / "c")
    assert c != b
    assert b.receipt is not None
    assert c.source.receipt == b.receipt
    assert [member.name for member in lineage(c, "c")] == ["a", "b", "c"]
    assert {check.name for check in b.receipt.checks} >= {"elements", "function"}
    assert b.receipt.proven is True


def newer(data: State) -> None:
    """Add a key in every place, as a later version may."""
    parts = (
        data, data["source"], data["growth"], data["options"], data["files"][0],
        data["source"]["family"][-1], data["source"]["receipt"],
        data["source"]["receipt"]["checks"][0], data["source"]["family"][-1]["receipt"],
    )  # fmt: skip
    for part in parts:
        part["of_a_later_version"] = {"a": [1, 2.5, None]}


def older(data: State) -> None:
    """Take away what earlier versions did not write."""
    for part, keys in (
        (data, ("training", "drift", "notes")),
        (data["source"], ("hub", "date", "tokens", "base_output", "arguments", "model", "layout")),
        (data["growth"], ("seed", "spreads", "preserves_function")),
        (data["options"], ("replicated", "init_std")),
        (data["source"]["receipt"], ("proven", "missing", "date")),
        (data["source"]["family"][-1]["receipt"], ("proven", "missing", "date")),
    ):
        for key in keys:
            part.pop(key, None)


@pytest.mark.parametrize("change", [newer, older])
def test_what_other_versions_say_survives_a_receipt(
    plain: State, tmp_path: Path, change: Any
) -> None:
    change(plain)
    manifest = kept(tmp_path, plain)
    assert encode(manifest) == sealed(plain)
    receipt = Receipt(
        flmgrow="0", date="2026-01-01", source="b", source_digest="d", equal=True, proven=False,
        missing=("elements",), checks=(),
    )  # fmt: skip
    told = {**plain, "receipt": receipt.to_json()}
    assert encode(manifest.changed(receipt=receipt)) == sealed(told)
    assert kept(tmp_path, told).receipt == receipt


@pytest.mark.parametrize("change", [newer, older])
def test_what_other_versions_say_of_ancestors_is_handed_on(
    plain: State, tmp_path: Path, change: Any
) -> None:
    change(plain)
    *ancestors, parent, itself = lineage(kept(tmp_path, plain), "c")
    family = plain["source"]["family"]
    known = {key: plain["source"][key] for key in ("tokens", "date") if plain["source"].get(key)}
    assert [member.to_json() for member in ancestors] == family[:-1]
    assert parent.to_json() == {**family[-1], **known}
    assert list(itself.to_json()) == ["name", "parameters", "iteration", "methods", "receipt"]
    assert itself.to_json()["receipt"] is None


def test_a_member_that_no_manifest_describes_has_no_receipt() -> None:
    plain = {"name": "a", "parameters": 8, "iteration": None, "tokens": 0}
    assert Member(name="a", parameters=8, iteration=None, tokens=0).to_json() == plain
    assert Member.parse(plain).to_json() == plain


def test_an_earlier_receipt_is_proven_if_its_elements_were_derived(plain: State) -> None:
    receipt = deepcopy(plain["source"]["receipt"])
    for key in ("proven", "missing"):
        del receipt[key]
    assert Receipt.parse(receipt).summary.proven is True
    assert Receipt.parse(receipt).summary.missing is None
    receipt["checks"] = [check for check in receipt["checks"] if check["name"] != "elements"]
    assert Receipt.parse(receipt).summary.proven is False
    assert Receipt.parse({**receipt, "checks": []}).summary.proven is None


def test_what_is_left_out_is_known_by_its_name(plain: State) -> None:
    plain.update(dropped=["rng_state", "own"], dropped_why={"own": "names a.B"})
    manifest = Manifest.parse(plain)
    assert manifest.to_json() == plain
    assert [manifest.leaves_out(key) for key in ("rng_state", "own", "ow", "own: names a.B")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_what_an_earlier_version_left_out_is_known(plain: State) -> None:
    """It wrote the reason behind the name."""
    plain.update(dropped=["rng_state", "own: names a.B"])
    manifest = Manifest.parse(plain)
    assert [manifest.leaves_out(key) for key in ("rng_state", "own", "ow")] == [True, True, False]


@pytest.mark.parametrize(("keys", "value"), [
    (("dropped",), "optimizer"), (("dropped_why",), {"own": 3}), (("notes",), [3]),
    (("dtype",), None), (("model",), []),
    (("growth", "seed"), "0"), (("growth", "preserves_function"), "yes"),
    (("growth", "spreads"), {"up": "wide"}), (("options", "replicated"), 3),
    (("source", "receipt", "checks"), [{"passed": True}]), (("training",), {"tokens": -1}),
    (("training",), {"losses": [1.0], "loss_batches": [8, 8]}),
])  # fmt: skip
def test_a_field_of_another_type_is_refused_when_it_is_read(
    plain: State, tmp_path: Path, keys: tuple[str, ...], value: object
) -> None:
    inner = plain
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(BadCheckpointError, match=f"{MANIFEST}: .*{keys[-1]}"):
        kept(tmp_path, plain)
