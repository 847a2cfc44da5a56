"""``verify --integrity``: every file of one checkpoint against every sum there is of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import edit, flip_bit, rank_files, record_of
from hf_folders import make_folder
from hub_places import hub_at, upload
from pico import CONFIGS, even, make_checkpoint
from pico_distributed import distribute

from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.formats.huggingface.safetensors_file import SafetensorsFile
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.storage.files import ReadOnlyFile

LAYOUT = even(CONFIGS["llama"], tp=2, pp=2)


def lines(out: str) -> dict[str, tuple[str, str]]:
    """By name of file, the word and the detail that were printed."""
    rows = (line.split(None, 2) for line in out.splitlines()[:-1])
    return {name: (word, detail) for word, name, detail in rows}


def checked(code: int, path: Path) -> tuple[dict[str, tuple[str, str]], str]:
    outcome = flmgrow("verify", "--integrity", path)
    assert outcome.code == code, outcome
    return lines(outcome.out), outcome.out.splitlines()[-1]


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT, dtype="bfloat16", optimizer=True)
    accepted("expand", source, tmp_path / "b", "--ffn-hidden-size", 24)
    return tmp_path / "b"


def test_every_file_of_a_result_is_named_with_its_sums(grown: Path) -> None:
    found, last = checked(0, grown)
    names = {str(path.relative_to(grown)) for path in grown.rglob("*") if path.is_file()}
    assert names <= found.keys()
    assert last == "intact"
    rank = f"{rank_files(grown)[0].relative_to(grown)}"
    assert found[rank] == ("ok", "CRC32 and xxh3 match")
    assert found["flmgrow.json"] == ("ok", "its own sum matches")


def test_a_stock_checkpoint_has_a_sum_in_every_record(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT)
    found, last = checked(0, source)
    assert last == "intact"
    assert [word for word, _ in found.values()] == ["ok"] * 6


def flipped(file: Path) -> None:
    flip_bit(file, record_of(file, "decoder.layers.0.mlp.linear_fc2.weight"), 5)


def saved_anew(file: Path) -> None:
    torch.save(torch.load(file, weights_only=False), file)


def drifted(file: Path) -> None:
    edit(file, lambda c: c["model"]["decoder.layers.0.input_layernorm.weight"].add_(1))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flipped, "CRC32"),
    "another save": (saved_anew, "manifest says"),
    "a copy": (drifted, "manifest says"),
    "a file is gone": (lambda file: file.with_name("flmgrow.json").unlink(missing_ok=True), ""),
}


@pytest.mark.parametrize("which", ["a bit", "another save", "a copy"])
def test_damage_is_found_in_its_file_and_the_others_are_read_all_the_same(
    grown: Path, which: str
) -> None:
    change, says = DAMAGE[which]
    file = rank_files(grown)[2]
    change(file)
    found, last = checked(1, grown)
    assert last == "DAMAGED"
    word, detail = found[str(file.relative_to(grown))]
    assert (word, says in detail) == ("DIFFERENT", True), detail
    others = [str(path.relative_to(grown)) for path in rank_files(grown) if path != file]
    assert all(found[name][0] == "ok" for name in others)


def test_a_damaged_optimizer_is_damage_though_nobody_can_read_it(tmp_path: Path) -> None:
    """A bit in its pickle, one in its values, an end that is not there: each is in its file."""
    source = distribute(
        make_checkpoint(tmp_path / "a", "llama", LAYOUT, dtype="bfloat16", optimizer=True)
    )
    assert checked(0, source)[1] == "intact"
    file = rank_files(source)[1].with_name("distrib_optim.pt")
    whole = file.read_bytes()
    for damaged in (flipped_at(whole, 100), flipped_at(whole, len(whole) // 2), whole[:-50]):
        file.write_bytes(damaged)
        found, last = checked(1, source)
        assert last == "DAMAGED"
        assert found[str(file.relative_to(source))][0] == "DIFFERENT"
        others = [path.with_name(file.name) for path in rank_files(source)]
        assert [found[str(p.relative_to(source))][0] for p in others if p != file] == ["ok"] * 3


def flipped_at(content: bytes, place: int, bit: int = 1) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_a_copy_that_drifted_is_damage_though_every_sum_is_right(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT)
    drifted(rank_files(source)[2])
    outcome = flmgrow("verify", "--integrity", source)
    assert outcome.code == 1
    assert "DIFFERENT  copies in a" in outcome.out


def test_a_manifest_that_was_changed_is_damage(grown: Path) -> None:
    path = grown / "flmgrow.json"
    path.write_text(path.read_text().replace('"seed": ', '"seed": 1'))
    found, _ = checked(1, grown)
    assert found["flmgrow.json"] == (
        "DIFFERENT",
        "its own sum does not match its content",
    )


@pytest.mark.parametrize("file_format", ["torch_dist", "huggingface"])
def test_results_of_other_formats_are_covered_as_a_whole(tmp_path: Path, file_format: str) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT)
    accepted("reshard", source, tmp_path / "b", "--format", file_format)
    found, last = checked(0, tmp_path / "b")
    assert last == "intact"
    weights = [name for name in found if name.endswith((".distcp", ".safetensors"))]
    assert weights
    assert all("xxh3" in found[name][1] for name in weights)
    damaged = tmp_path / "b" / weights[0]
    data = bytearray(damaged.read_bytes())
    data[-100 if file_format == "huggingface" else len(data) // 2] ^= 4
    damaged.write_bytes(data)
    assert flmgrow("verify", "--integrity", tmp_path / "b").code in (1, 3)


Places = list[tuple[Path, str, int, int]]
"""Of each tensor: its file, its name there, where its bytes begin and how many they are."""


def places_in(root: Path) -> Places:
    """Where torch's files, distributed items and safetensors say that their tensors are."""
    found: Places = []
    for path in rank_files(root):
        with TorchFile(path) as file:
            for keys, record in walk_tensors(file.root):
                name = ": ".join(map(str, keys))
                found.append((path, name, record.storage.offset, record.storage.nbytes))
    for path in root.glob("*.safetensors"):
        tensors = SafetensorsFile(path).tensors.values()
        found += [(path, each.name, each.offset, each.nbytes) for each in tensors]
    for folder in {path.parent for path in root.rglob("*.distcp")}:
        for tensor in read_metadata(folder).tensors.values():
            for chunk in tensor.chunks:
                with ReadOnlyFile(folder / chunk.file) as whole:
                    item = TorchFile(whole, base=chunk.offset, length=chunk.length)
                    (record,) = [each for _, each in walk_tensors(item.root)]
                    at, size = record.storage.offset, record.storage.nbytes
                found.append((folder / chunk.file, tensor.name, at, size))
    return [place for place in found if place[3]]


@pytest.mark.parametrize("file_format", ["megatron", "torch_dist", "huggingface"])
def test_a_flipped_bit_is_named_with_its_tensor(tmp_path: Path, file_format: str) -> None:
    kept = file_format != "huggingface"
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT, dtype="bfloat16", optimizer=kept)
    accepted("reshard", source, tmp_path / "b", "--format", file_format)
    chance, places = Random(3), places_in(tmp_path / "b")
    assert len(places) > 20
    for path, name, start, size in chance.sample(places, 12):
        place, whole = start + chance.randrange(size), path.read_bytes()
        path.write_bytes(flipped_at(whole, place, 1 << chance.randrange(8)))
        found, last = checked(1, tmp_path / "b")
        assert last == "DAMAGED"
        word, detail = found[str(path.relative_to(tmp_path / "b"))]
        assert (word, name in detail) == ("DIFFERENT", True), (name, detail)
        path.write_bytes(whole)
    assert checked(0, tmp_path / "b")[1] == "intact"


def test_a_bit_outside_of_all_tensors_is_none_of_them(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT)
    accepted("reshard", source, tmp_path / "b", "--format", "huggingface")
    (path,) = (tmp_path / "b").glob("*.safetensors")
    whole = path.read_bytes()
    place = whole.index(b'"flmgrow"') + 1
    path.write_bytes(flipped_at(whole, place, 2))
    found, _ = checked(1, tmp_path / "b")
    assert "none of its tensors differs" in found[path.name][1]


def test_safetensors_without_a_manifest_have_no_sum(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", shards=2)
    found, last = checked(9, folder)
    assert {word for word, _ in found.values()} == {"unproven"}
    assert {detail for _, detail in found.values()} == {"no checksum covers it"}
    assert last == f"no damage found, NOT PROVEN: {len(found)} of {len(found)}"


def test_what_the_hub_gave_is_compared_with_the_hubs_own_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "hf", shards=2)
    with hub_at(tmp_path, monkeypatch) as hub:
        upload(hub, folder)
        outcome = accepted("verify", "--integrity", "hf://org/model")
        assert outcome.out.splitlines()[-1] == "intact"
        assert "SHA-256 of the Hub matches" in outcome.out
        assert "SHA-1 of Git matches" in outcome.out
        (file,) = (tmp_path / "cache").glob(
            "models--*/snapshots/*/model-00001-of-00002.safetensors"
        )
        blob = file.resolve()
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
        found = flmgrow("verify", "--integrity", "hf://org/model")
        assert found.code == 1
        assert lines(found.out)[file.name][0] == "DIFFERENT"


def test_a_folder_that_was_downloaded_to_is_compared_with_the_hubs_own_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nobody has written to its files; what huggingface_hub keeps is none of them."""
    from huggingface_hub import snapshot_download

    folder, there = make_folder(tmp_path / "hf", shards=2), tmp_path / "there"
    with hub_at(tmp_path, monkeypatch) as hub:
        upload(hub, folder)
        snapshot_download("org/model", local_dir=there)
    assert (there / ".cache" / "huggingface").is_dir()
    found, last = checked(0, there)
    assert last == "intact"
    assert not [name for name in found if ".cache" in name]
    damaged = there / "model-00001-of-00002.safetensors"
    assert found[damaged.name] == ("ok", "SHA-256 of the Hub matches")
    moment = damaged.stat().st_mtime
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    os.utime(damaged, (moment, moment))  # a disk that rots sets no time
    found, last = checked(1, there)
    assert (found[damaged.name][0], last) == ("DIFFERENT", "DAMAGED")
    os.utime(damaged, (moment + 60, moment + 60))
    found, _ = checked(9, there)
    assert found[damaged.name] == (
        "unproven", "it was changed after the Hub gave it: no checksum covers it",
    )  # fmt: skip
    os.utime(there / "config.json", (moment + 60, moment + 60))
    assert checked(9, there)[0]["config.json"] == ("ok", "SHA-1 of Git matches")


def test_an_exported_folder_is_intact_whatever_its_card_says(tmp_path: Path) -> None:
    """The card is written last, and edited by hand."""
    source = make_checkpoint(tmp_path / "a", "llama", LAYOUT)
    accepted("export", source, tmp_path / "b")
    found, last = checked(0, tmp_path / "b")
    assert found["README.md"][0] == "note"
    assert last == "intact"
    assert {word for name, (word, _) in found.items() if name != "README.md"} == {"ok"}


def test_programs_get_the_same_as_json(tmp_path: Path) -> None:
    outcome = flmgrow("verify", "--integrity", make_folder(tmp_path / "hf"), "--json")
    data = json.loads(outcome.out)
    assert outcome.code == 9
    assert (data["intact"], data["proven"]) == (True, False)
    assert sorted(data["missing"]) == sorted(check["name"] for check in data["checks"])


def test_it_takes_one_checkpoint(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    two = ("verify", "--integrity", source, source)
    refused(2, "--integrity: checks one checkpoint, found .*a, too", *two, place=tmp_path)
    refused(2, "DST: is not given", "verify", source, place=tmp_path)
