"""A distributed checkpoint is the same model as the legacy one it was made from."""

from pathlib import Path
from typing import Any

import dcp_folders
import pytest
import torch
from growing import grow_checkpoint, rank_arrays, same_bits, tokens_for
from pico import CONFIGS, even, logical_weights, make_checkpoint
from pico_dist import global_arrays, make_dist_checkpoint
from pico_model import DictWeights

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.pieces import read_whole
from flmgrow.model.axes import full_box
from flmgrow.model.forward import logits
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.weights import CheckpointWeights

NAMES = [name for name in CONFIGS if name != "nemotron"]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_model_computes(tmp_path: Path, name: str, tp: int) -> None:
    config = CONFIGS[name]
    tokens = tokens_for(config.vocab)
    with open_checkpoint(make_dist_checkpoint(tmp_path, name, tp)) as opened:
        assert (opened.format, opened.config) == ("torch_dist", config)
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), tokens)
    wanted = logits(config, DictWeights(logical_weights(config)), tokens)
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_resharded_to_legacy_it_is_the_legacy_checkpoint(
    tmp_path: Path, name: str, dtype: str
) -> None:
    layout = even(CONFIGS[name], tp=2, pp=2)
    source = make_dist_checkpoint(tmp_path, name, 2, dtype=dtype)
    wanted = make_checkpoint(tmp_path / "wanted", name, layout, naming="fused", dtype=dtype)
    grow_checkpoint(source, tmp_path / "out", request=LayoutRequest(2, 2), file_format="megatron")
    with open_checkpoint(tmp_path / "out") as a, open_checkpoint(wanted) as b:
        assert a.fused
        assert a.layout == b.layout
        for left, right in zip(a.reader.arrays, b.reader.arrays, strict=True):
            assert left.placement.key == right.placement.key
            if left.placement.row.shard != "vocab":  # padding is another matter
                assert same_bits(read_whole(left), read_whole(right))
        for tensor in ("embedding", "query", "gate" if b.config.gated else "up"):
            box = full_box(b.reader.tensors[tensor].shape(b.config.sizes))
            assert same_bits(a.reader.read(tensor, box), b.reader.read(tensor, box))


@pytest.mark.parametrize("method", ["zero", "copy", "mask"])
@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_it_grows_as_the_legacy_checkpoint_does(tmp_path: Path, name: str, method: str) -> None:
    target = Target(layers=6, hidden=20, ffn=32, methods=parse_methods(method))
    legacy = make_checkpoint(tmp_path / "a", name, naming="fused")
    dist = make_dist_checkpoint(tmp_path / "b", name, 4)
    for source, out in ((legacy, "grown-a"), (dist, "grown-b")):
        grow_checkpoint(source, tmp_path / out, target, LayoutRequest(2, 1), file_format="megatron")
    with open_checkpoint(tmp_path / "grown-a") as a, open_checkpoint(tmp_path / "grown-b") as b:
        for left, right in zip(a.reader.arrays, b.reader.arrays, strict=True):
            assert same_bits(read_whole(left), read_whole(right)), str(left)


def written(tmp_path: Path, name: str, request: LayoutRequest, **options: Any) -> tuple[Path, Path]:
    """Return a legacy checkpoint, and a distributed one that flmgrow wrote from it."""
    layout = even(CONFIGS[name], tp=2, pp=2)
    legacy = make_checkpoint(tmp_path / "legacy", name, layout, naming="fused", **options)
    grow_checkpoint(legacy, tmp_path / "dist", request=request, file_format="torch_dist")
    return legacy, tmp_path / "dist"


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_bit_equal(tmp_path: Path, name: str, dtype: str) -> None:
    legacy, dist = written(tmp_path, name, LayoutRequest(2, 1), dtype=dtype, extra_state="bytes")
    grow_checkpoint(dist, tmp_path / "back", request=LayoutRequest(2, 2), file_format="megatron")
    assert rank_arrays(tmp_path / "back") == rank_arrays(legacy)
    with open_checkpoint(legacy) as a, open_checkpoint(tmp_path / "back") as b:
        old, new = (rank_content(x, (0, 1))["model"] for x in (a, b))
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        states = {key: value for key, value in old.items() if "layers" in str(key)}
        assert {k: v for k, v in new.items() if k in states and k.endswith("_extra_state")} == {
            k: v for k, v in states.items() if str(k).endswith("_extra_state")
        }


@pytest.mark.parametrize(
    "layout", [LayoutRequest(1, 1), LayoutRequest(4, 2), LayoutRequest(2, 2, 2)]
)
@pytest.mark.parametrize("name", ["llama", "gpt", "qwen"])
def test_torch_reads_the_whole_arrays(tmp_path: Path, name: str, layout: LayoutRequest) -> None:
    _, dist = written(tmp_path, name, layout)
    one = make_checkpoint(tmp_path / "one", name, naming="fused")
    wanted = global_arrays(one)
    (folder,) = dist.glob("iter_*")
    with open_checkpoint(dist) as opened:
        rows = opened.padded_vocab
    loaded = {}
    for key, array in wanted.items():
        padded = "word_embeddings" in key or "output_layer" in key
        loaded[key] = torch.full((rows, *array.shape[1:]) if padded else array.shape, torch.nan)
        loaded[key] = loaded[key].to(array.dtype)
    dcp_folders.load(folder, loaded)
    for key, array in wanted.items():
        same = loaded[key].shape == array.shape
        real = len(array) if same else min(len(array), CONFIGS[name].vocab)
        assert torch.equal(loaded[key][:real], array[:real]), key


def test_growing_into_it_is_growing(tmp_path: Path) -> None:
    target = Target(layers=6, hidden=20, ffn=32, methods=parse_methods("zero"))
    source = make_dist_checkpoint(tmp_path / "s", "llama", 2)
    grow_checkpoint(source, tmp_path / "a", target, LayoutRequest(4, 2))
    grow_checkpoint(source, tmp_path / "b", target, LayoutRequest(2, 1), file_format="megatron")
    with open_checkpoint(tmp_path / "a") as a, open_checkpoint(tmp_path / "b") as b:
        assert (a.format, b.format) == ("torch_dist", "megatron")
        for name in a.reader.tensors:
            box = full_box(a.reader.tensors[name].shape(a.config.sizes))
            assert same_bits(a.reader.read(name, box), b.reader.read(name, box))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BadCheckpointError, match=match):
        open_checkpoint(folder)


def changed(tmp_path: Path, **arguments: object) -> Path:
    root = make_dist_checkpoint(tmp_path, "llama", 2)
    (file,) = root.rglob("common.pt")
    common = torch.load(file, weights_only=False)
    vars(common["args"]).update(arguments)
    torch.save(common, file)
    return root


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ffn_hidden_size": 24}, r"is 24, wanted 20: .*linear_fc2\.weight has shape \(12, 20\)"),
        ({"num_layers": 3}, "is 3, wanted 4: decoder.layers: 4 layers are stored"),
        ({"add_qkv_bias": True}, r"wanted False: .*linear_qkv\.bias is not stored"),
        ({"normalization": "LayerNorm"}, "wanted RMSNorm: .*bias is not stored"),
        ({"untie_embeddings_and_output_weights": True}, r"output_layer\.weight is not stored"),
    ],
)
def test_arguments_and_arrays_must_agree(
    tmp_path: Path, arguments: dict[str, object], match: str
) -> None:
    refused(changed(tmp_path, **arguments), match)


def test_a_parameter_that_the_arguments_deny_is_refused(tmp_path: Path) -> None:
    root = make_dist_checkpoint(tmp_path, "qwen")
    (file,) = root.rglob("common.pt")
    common = torch.load(file, weights_only=False)
    common["args"].add_qkv_bias = False
    torch.save(common, file)
    refused(root, r"args.add_qkv_bias is False, wanted True: .*linear_qkv\.bias has shape")


def test_without_its_common_part_it_is_refused(tmp_path: Path) -> None:
    root = make_dist_checkpoint(tmp_path, "llama")
    next(root.rglob("common.pt")).unlink()
    refused(root, r"has no common\.pt")


def test_a_chunk_through_a_group_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pico_dist

    boxes = pico_dist._boxes
    monkeypatch.setattr(
        pico_dist, "_boxes", lambda key, a, tp, g: boxes(key, a, 8 if "qkv" in key else 1, g)
    )
    refused(make_dist_checkpoint(tmp_path, "llama"), "cut through a kv_group index")
