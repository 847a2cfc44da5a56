"""Safetensors files that lie: each is refused with the file and the tensor named."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused
from hf_folders import Header, as_file, header_of, llama_arrays, make_folder, write_safetensors
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface import safetensors_file
from flmgrow.formats.huggingface.safetensors_file import NewTensor, SafetensorsFile, SafetensorsPlan

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float64)
PAIR: dict[str, Any] = {"a": A, "b": B}
DATA = A.tobytes() + B.tobytes()
Change = Callable[[Header], object]


def do(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    """All steps, one after the other, on a folder."""

    def run(folder: Path) -> None:
        for step in steps:
            step(folder)

    return run


def changed(change: Change) -> bytes:
    header = header_of(PAIR)
    change(header)
    return as_file(header, DATA)


def with_entry(**values: Any) -> bytes:
    return changed(lambda header: header["b"].update(values))


def renamed(name: str) -> bytes:
    return changed(lambda header: header.update({name: header.pop("b")}))


TEXT = json.dumps(header_of(PAIR)).encode()
TWICE = TEXT.replace(b'"b":', b'"a":')

BAD: dict[str, tuple[bytes, str]] = {
    "D1 empty": (b"", "truncated: has 0 bytes"),
    "D2 seven bytes": (b"1234567", "truncated: has 7 bytes"),
    "D3 header longer than the file": (as_file(TEXT, DATA, 10**6), "truncated: its header"),
    "D4 header of 2^64 - 1": (as_file(TEXT, DATA, 2**64 - 1), "at most 100000000 can be"),
    "D5 header over the limit": (as_file(TEXT, DATA, 100_000_001), "100000001 bytes, at most"),
    "D6 no JSON": (as_file(b"{nothing}"), "header: is not JSON"),
    "D7 no UTF-8": (as_file(b'{"\xff\xfe": 1}'), "header: is not JSON"),
    "D8 an array": (as_file(b"[1, 2, 3]"), "does not begin with {"),
    "D9 nested deeply": (as_file(b'{"a":' * 10**5), "nested too deeply|is not JSON"),
    "D10 trailing bytes": (as_file(TEXT, DATA + b"x"), "1 trailing bytes belong to no tensor"),
    "D11 truncated": (as_file(TEXT, DATA[:-1]), "b: truncated: the file ends at"),
    "D12 a hole": (
        as_file({**header_of(PAIR), "b": {**header_of(PAIR)["b"], "data_offsets": [32, 64]}},
                DATA + bytes(8)),
        "b: 8 bytes before it are a hole",
    ),
    "D13 an overlap": (with_entry(data_offsets=[16, 48]), "b: overlaps a"),
    "D14 one range twice": (
        changed(lambda header: header.update(c=dict(header["b"]))), "[bc]: overlaps [bc]"
    ),
    "D15 end before begin": (with_entry(data_offsets=[56, 24]), "b: data_offsets .*begin and end"),
    "D16 negative offset": (with_entry(data_offsets=[-8, 24]), "b: data_offsets"),
    "D17 size unlike shape": (with_entry(shape=[5]), "b: F64 of shape .* has 40 bytes, .* span 32"),
    "D18 overflow": (with_entry(shape=[2**62, 4]), "b: shape"),
    "D19 overflow of a product": (with_entry(shape=[2**31, 2**31, 2**31, 0]), "b: .*too large"),
    "D20 negative dimension": (with_entry(shape=[-4]), "b: shape .* wanted whole numbers"),
    "D20 float dimension": (with_entry(shape=[4.0]), "b: shape"),
    "D20 true dimension": (with_entry(shape=[True]), "b: shape"),
    "D20 too many dimensions": (with_entry(shape=[4] + [1] * 99), "b: shape .*too large"),
    "D21 unknown dtype": (with_entry(dtype="F31"), "b: dtype 'F31' is not known"),
    "D21 dtype no string": (with_entry(dtype=["F64"]), "b: dtype"),
    "D22 missing field": (changed(lambda h: h["b"].pop("dtype")), "b: wanted dtype, shape and"),
    "D22 metadata no strings": (
        changed(lambda h: h.update(__metadata__={"format": 1})), "__metadata__: wanted"
    ),
    "D22 metadata no object": (changed(lambda h: h.update(__metadata__="pt")), "__metadata__"),
    "D22 entry no object": (changed(lambda h: h.update(b=[1])), "b: wanted dtype"),
    "D23 a key twice": (as_file(TWICE, DATA), "a: stands there twice"),
    "D23 a field twice": (
        as_file(TEXT.replace(b'"dtype": "F64"', b'"dtype": "F64", "dtype": "F64"'), DATA),
        "dtype: stands there twice",
    ),
    "D24 unknown field": (with_entry(extra=1), "b: wanted dtype, shape and data_offsets, no less"),
    "D24 leading space": (as_file(b" " + TEXT, DATA), "does not begin with {"),
    "D24 not a number": (with_entry(shape=[float("nan")]), "header: is not JSON: NaN"),
    "D25 an empty name": (renamed(""), "names a tensor ''"),
    "D25 a name with NUL": (renamed("b\0"), "names a tensor"),
    "D31 LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer",
    ),
    "a pickle": (b"\x80\x02}q\x00." + bytes(64), "at most 100000000 can be"),
    "a zip": (b"PK\x03\x04" + bytes(64), "can be|header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case: str, tmp_path: Path) -> None:
    content, says = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpointError, match=says) as refusal:
        SafetensorsFile(path)
    assert str(path) in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize("case", BAD)
def test_a_folder_with_a_bad_file_leaves_nothing(case: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    (source / "model.safetensors").write_bytes(BAD[case][0])
    words = ("import", source, tmp_path / "out")
    refused(3, f"model.safetensors.*({BAD[case][1]})", *words, place=tmp_path)


def test_the_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, PAIR)
    file = SafetensorsFile(path)
    assert [(t.name, t.shape, t.dtype) for t in file.tensors.values()] == [
        ("a", (2, 3), "float32"), ("b", (4,), "float64"),
    ]  # fmt: skip
    found = np.empty(2)
    file.read_into(file.tensors["b"], 8, found.view(np.uint8).data)
    assert found.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="b has 32 bytes"):
        file.read_into(file.tensors["b"], 24, found.view(np.uint8).data)


def test_what_the_format_allows_is_read(tmp_path: Path) -> None:
    """D25 a name like a path, D26 a header of odd length, empty tensors, order of the header."""
    empty = np.empty((0, 3), np.float32)
    arrays: dict[str, Any] = {"../../x": A, "empty": empty, "b": B}
    header = header_of(arrays)
    text = json.dumps(dict(reversed(header.items()))).encode()
    for padding in (b"", b" ", b"   "):
        path = tmp_path / "a.safetensors"
        path.write_bytes(as_file(text + padding, DATA))
        assert list(SafetensorsFile(path).tensors) == ["../../x", "empty", "b"]


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D27: the count is known before the header is parsed, or else right after."""
    many = {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(50)}
    escaped = json.dumps(many).replace("data_offsets", "data_offset\\u0073").encode()
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 40)
    for content, says in (
        (as_file(many), "more than 40 tensors"),
        (as_file(escaped), "holds 50 tensors"),
    ):
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        with pytest.raises(BadCheckpointError, match=says):
            SafetensorsFile(path)


def test_a_huge_header_is_refused_at_once(tmp_path: Path) -> None:
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    text = b"{" + b"".join(entry % i for i in range(1_400_000))[:-1] + b"}"
    source = make_folder(tmp_path / "hf")
    (source / "model.safetensors").write_bytes(as_file(text))
    refused(3, "more than 1000000 tensors", "import", source, tmp_path / "out", place=tmp_path)


@examples(60)
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: "\0" not in n and n != "__metadata__"),
        st.tuples(
            st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_what_is_planned_is_read_by_anyone(
    shapes: dict[str, tuple[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import torch
    from safetensors.torch import load

    tensors = tuple(NewTensor(name, dtype, shape) for name, (dtype, shape) in shapes.items())
    plan = SafetensorsPlan(tensors, (("format", "pt"),))
    data = bytes(i % 251 for i in range(sum(t.nbytes for t in tensors)))
    content = plan.header + data
    assert len(content) == plan.total_size
    assert len(plan.header) % 8 == 0
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    path.write_bytes(content)
    found = SafetensorsFile(path)
    assert {t.name: (t.dtype, t.shape) for t in found.tensors.values()} == shapes
    theirs = load(content)
    begin = 0
    for tensor in tensors:
        assert (
            bytes(theirs[tensor.name].reshape(-1).view(torch.uint8).tolist())
            == data[begin : begin + tensor.nbytes]
        )
        begin += tensor.nbytes


@examples(300)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte of the header changed, cut or added: a refusal, or tensors that fill the file."""
    content = bytearray(as_file(TEXT, DATA))
    place = data.draw(st.integers(0, 8 + len(TEXT)))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        content[place:place] = data.draw(st.binary(min_size=1, max_size=3))
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    path.write_bytes(content)
    try:
        tensors = SafetensorsFile(path).tensors
    except BadCheckpointError:
        return
    header = 8 + struct.unpack("<Q", content[:8])[0]
    assert header + sum(t.nbytes for t in tensors.values()) == len(content)


# --- folders


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def placed_in(name: object) -> Callable[[Path], None]:
    return lambda folder: edit_index(
        folder, lambda index: index["weight_map"].update({"model.norm.weight": name})
    )


def add_shard(folder: Path, name: str = "model-00004-of-00004.safetensors") -> None:
    write_safetensors(folder / name, {"x": A})


def drop_from_index(folder: Path) -> None:
    edit_index(folder, lambda index: index["weight_map"].pop("model.norm.weight"))


def remove(pattern: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return run


def as_pickles(folder: Path) -> None:
    remove("model*")(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


INDEX = "model.safetensors.index.json"
LAST = "model-00003-of-00003.safetensors"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "D28 up": (placed_in("../model.safetensors"), "index.json: model.norm.weight: is in '../"),
    "D28 absolute": (placed_in("/etc/passwd.safetensors"), "is in '/etc/passwd"),
    "D28 drive": (placed_in("C:x.safetensors"), "is in 'C:x"),
    "D28 share": (placed_in(r"\\unc\x.safetensors"), r"model.norm.weight: is in"),
    "D28 pickle": (placed_in("pytorch_model.bin"), "is in 'pytorch_model.bin', wanted a safetens"),
    "D28 hidden": (placed_in(".x.safetensors"), "is in '.x"),
    "D28 no string": (placed_in(3), "is in 3"),
    "D28 terminal": (placed_in("\x1b[2J.safetensors"), "is in"),
    "D29 not in the shard": (
        lambda f: edit_index(f, lambda i: i["weight_map"].update(x=LAST)),
        f"{LAST}: x: not there, but in the index",
    ),
    "D29 not in the index": (drop_from_index, "model.norm.weight: the index does not place it"),
    "D29 elsewhere": (
        lambda f: edit_index(f, lambda i: i["weight_map"].update({"model.norm.weight": LAST,
                             "lm_head.weight": LAST})),
        "the index does not place it there",
    ),
    "D30 shard missing": (remove(LAST), f"1 of 3 shards are missing: {LAST}"),
    "D30 one too many": (add_shard, "00004-of-00004.safetensors: is a shard that the index does"),
    "D30 no index": (remove(INDEX), "has 3 numbered shards, but no"),
    "D30 index and single": (lambda f: add_shard(f, "model.safetensors"), "has both"),
    "D31 index is a pointer": (
        lambda f: (f / INDEX).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "index.json: is a Git LFS pointer",
    ),
    "index no JSON": (lambda f: (f / INDEX).write_text("{"), "index.json: is not JSON"),
    "index empty": (lambda f: (f / INDEX).write_text("{}"), "wanted a weight_map"),
    "index with a key twice": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "b", "a": "b"}}'), "a: stands there"
    ),
    "config no JSON": (lambda f: (f / "config.json").write_text("x"), "config.json: is not JSON"),
    "config an array": (lambda f: (f / "config.json").write_text("[]"), "json: holds a list"),
    "config too large": (
        lambda f: (f / "config.json").write_text("{" + " " * (1 << 20) + "}"), "wanted at most"
    ),
    "config a folder": (
        do(remove("config.json"), lambda f: (f / "config.json").mkdir()), "is a folder"
    ),
    "a pickle only": (as_pickles, "its weights are pickles.*hint: .*save_pretrained"),
    "no weights": (
        remove("model*"), "but neither model.safetensors nor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_refused(case: str, tmp_path: Path) -> None:
    change, says = FOLDERS[case]
    source = make_folder(tmp_path / "hf", shards=3)
    change(source)
    refused(3, says, "import", source, tmp_path / "out", place=tmp_path)


def test_the_good_folder_is_imported(tmp_path: Path) -> None:
    from commands import accepted

    accepted("import", make_folder(tmp_path / "hf", shards=3), tmp_path / "out")


def swap(name: str, array: Any) -> dict[str, Any]:
    arrays = llama_arrays()
    arrays[name] = array
    return arrays


KEY = "model.layers.1.self_attn.k_proj.weight"
TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "D32 shape": (swap(KEY, np.zeros((8, 8), np.float32)), f"{KEY}: shape .8, 8., wanted .4, 8."),
    "missing": ({k: v for k, v in llama_arrays().items() if k != KEY}, f"{KEY}: not there"),
    "those of a model of pictures": (
        {f"language_model.{name}": array for name, array in llama_arrays().items()},
        "not there, but language_model.model.*of pictures or sound are not supported",
    ),
    "one too many": (swap("model.layers.2.x", A), "model.layers.2.x: no such parameter"),
    "no dtype of weights": (swap(KEY, np.zeros((4, 8), np.uint8)), f"{KEY}: dtype U8"),
    "not finite": (swap(KEY, np.full((4, 8), np.inf, np.float32)), "key.1, 0, 0, 0.: inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_bad_tensors_are_refused(case: str, tmp_path: Path) -> None:
    arrays, says = TENSORS[case]
    source = make_folder(tmp_path / "hf", arrays=arrays)
    refused(3, says, "import", source, tmp_path / "out", place=tmp_path)
