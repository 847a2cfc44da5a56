"""Tensors that lie in their file by stride are read as torch reads them, any part, in any cut."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from damage import edit_all, rank_files, replace_record
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, even, make_checkpoint

from flmgrow.formats.torch_file import strided
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.values import TensorRecord

GROW = ("--hidden-size", 16, "--method", "zero")


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of up to four axes: cut with steps, transposed, expanded, in any combination."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.float64, torch.bfloat16, torch.uint8]))
    count = torch.Size(shape).numel()
    view = torch.arange(count).to(dtype).reshape(shape)
    cuts = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        cuts.append(slice(start, draw(st.integers(start + 1, size)), draw(st.integers(1, 3))))
    view = view[tuple(cuts)].permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()) and 1 in view.shape:
        wide = [5 if size == 1 else size for size in view.shape]
        view = view.expand(wide)
    return view


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views") / "view.pt"


@pytest.fixture(params=["as they are", "tiny"])
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Spans are cut up as they would be in weights of gigabytes."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiny":
            patch.setattr(strided, "_SMALL", 8)
            patch.setattr(strided, "_LARGE", 64)
            patch.setattr(strided, "_DENSE", 2)
        yield


@given(view=views(), data=st.data())
@pytest.mark.usefixtures("limits")
def test_any_part_of_any_view_is_read(place: Path, view: torch.Tensor, data: st.DataObject) -> None:
    torch.save(view, place)
    first = data.draw(st.integers(0, view.numel() - 1))
    last = data.draw(st.integers(first + 1, view.numel()))
    size = view.element_size()
    target = bytearray((last - first) * size)
    with TorchFile(place) as file:
        assert isinstance(file.root, TensorRecord)
        strided.read_tensor(file, file.root, first * size, memoryview(target))
    assert bytes(target) == raw(view)[first * size : last * size]


def test_a_column_cut_reads_little_beside_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One column of a wide matrix: not the matrix."""
    wide = torch.arange(1 << 20).reshape(64, -1)
    torch.save(wide[:, 5:6], place)
    read = 0
    plain = TorchFile.read_into

    def counted(self: TorchFile, storage: Any, offset: int, target: memoryview) -> None:
        nonlocal read
        read += target.nbytes
        plain(self, storage, offset, target)

    monkeypatch.setattr(TorchFile, "read_into", counted)
    target = bytearray(64 * 8)
    with TorchFile(place) as file:
        assert isinstance(file.root, TensorRecord)
        strided.read_tensor(file, file.root, 0, memoryview(target))
    assert bytes(target) == raw(wide[:, 5:6])
    assert read < wide.nbytes / 2


def column_cuts(content: dict[str, Any]) -> None:
    """Save every matrix as a view of columns, and the moments transposed."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((torch.full_like(tensor, 7), tensor, tensor), dim=1)[
            :, : 2 * len(tensor.T)
        ][:, len(tensor.T) :]

    model = content["model"]
    for key, value in model.items():
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            model[key] = cut(value)
            assert not model[key].is_contiguous()
    for entry in content["optimizer"]["state"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            if entry[key].ndim == 2:
                entry[key] = entry[key].T.contiguous().T


def test_a_checkpoint_of_views_grows_as_one_of_copies(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    plain = make_checkpoint(tmp_path / "plain", config, even(config, 2, 2), optimizer=True)
    views = make_checkpoint(tmp_path / "views", config, even(config, 2, 2), optimizer=True)
    edit_all(views, column_cuts)
    for source in (plain, views):
        accepted("expand", source, source.with_suffix(".out"), *GROW)
    for one, other in zip(
        rank_files(plain.with_suffix(".out")), rank_files(views.with_suffix(".out")), strict=True
    ):
        a, b = (torch.load(file, weights_only=False) for file in (one, other))
        assert a["model"].keys() == b["model"].keys()
        for key, value in a["model"].items():
            assert value is None or torch.equal(value, b["model"][key])
        for number, entry in a["optimizer"]["state"].items():
            for key, value in entry.items():
                assert torch.equal(value, b["optimizer"]["state"][number][key])
    accepted("verify", views, views.with_suffix(".out"))


def on_a_gpu(pickled: bytes) -> bytes:
    """Say of every storage that it was on the first GPU."""
    return pickled.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")


def test_what_was_saved_from_a_gpu_is_written_for_any_machine(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    source = make_checkpoint(tmp_path / "a", config, optimizer=True)
    for file in rank_files(source):
        replace_record(file, "/data.pkl", on_a_gpu)
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(file, weights_only=False)
    accepted("reshard", source, tmp_path / "b", "--tp", 2)
    for file in rank_files(tmp_path / "b"):
        assert b"cuda" not in file.read_bytes()
        content = torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
        assert all(v is None or v.device.type == "cpu" for v in content["model"].values())
