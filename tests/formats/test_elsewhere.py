"""What is no checkpoint of ours is told apart, and what each hint says to do leads to a model."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import accepted, refused
from hf_folders import fields, llama_arrays, make_folder, with_files, write_safetensors
from safetensors.torch import load_file
from transformers_models import save_model


def folder(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        with_files(path, *names)

    return make


def adapter(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    write_safetensors(path / "adapter_model.safetensors", {"x": np.zeros(1, np.float32)})


def without_weights(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        make_folder(path)
        (path / "model.safetensors").unlink()
        with_files(path, *names)

    return make


def checkpoints_inside(path: Path) -> None:
    path.mkdir()
    for name in ("checkpoint-5", "checkpoint-9"):
        make_folder(path / name)


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "adapter": (adapter, "", "is an adapter of org/base, .*hint: merge it into its base"),
    "adapter beside a configuration": (
        without_weights("adapter_config.json"), "", "adapter_config.json: is not JSON"
    ),
    "gguf": (folder("model.Q4_K_M.gguf"), "", "is a GGUF file.*hint: give the safetensors"),
    "gguf file": (folder("model.gguf"), "model.gguf", "model.gguf: is a GGUF file"),
    "a file": (folder("model.safetensors"), "model.safetensors", "is a file.*hint: give its fol"),
    "diffusion": (folder("model_index.json", "x.bin"), "", "is a diffusion pipeline"),
    "Meta": (folder("params.json", "consolidated.00.pth"), "", "makers' own layout .consolidated"),
    "NeMo": (folder("x.nemo"), "", r"makers' own layout .x\.nemo."),
    "ONNX": (without_weights("model.onnx"), "", r"makers' own layout .model\.onnx."),
    "TensorFlow": (without_weights("tf_model.h5"), "", "another framework .*hint: .*from_tf=True"),
    "Flax": (without_weights("flax_model.msgpack"), "", "another framework .*from_flax=True"),
    "pickles": (without_weights("pytorch_model.bin"), "", "its weights are pickles .*save_pretr"),
    "no weights": (without_weights(), "", "has config.json, but neither .*hint: copy or download"),
    "no configuration": (folder("model.safetensors"), "", "has model.safetensors, but no config.j"),
    "only pickles": (folder("pytorch_model.bin"), "", "has pytorch_model.bin, but no config.json"),
    "empty": (folder(), "", "is empty"),
    "checkpoints": (checkpoints_inside, "", "checkpoint-5, checkpoint-9.*hint: give .*nt-9$"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_kind_has_its_own_hint(case: str, tmp_path: Path) -> None:
    make, inside, says = CASES[case]
    make(tmp_path / "x")
    refused(3, says, "import", tmp_path / "x" / inside, tmp_path / "out", place=tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "hint: .*: hf://HuggingFaceTB/SmolLM2-135M\n"),
        ("org/name@v1.0", "hint: .*hf://org/name@v1.0\n"),
        ("https://huggingface.co/org/name/tree/main", "hint: write hf://org/name\n"),
        ("./no/such/folder", "no/such/folder: no such folder\nhint: give a checkpoint folder\n"),
    ],
)
def test_a_name_that_is_no_folder(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(3, says, "inspect", name, place=tmp_path)


def test_a_folder_of_the_cache_is_named_as_the_hub_has_it(tmp_path: Path) -> None:
    make = tmp_path / "models--org--name"
    (make / "snapshots").mkdir(parents=True)
    refused(3, "hint: write hf://org/name", "inspect", make, place=tmp_path)


def test_the_hint_for_pickles_leads_to_the_same_weights(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    model = save_model("llama", source, torch.bfloat16)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    hint = refused(3, "pickles", "inspect", source, place=tmp_path).err.split("python -c ")[1]
    with contextlib.redirect_stderr(io.StringIO()):
        exec(hint.strip().strip('"'), {})
    found = load_file(f"{source}-safetensors/model.safetensors")
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    accepted("import", f"{source}-safetensors", tmp_path / "m")


# --- Quantized weights

PLAIN = "model.layers.0.mlp.up_proj.weight"
CODES = np.zeros((12, 4), np.uint8)
QUANTIZED: dict[str, tuple[dict[str, object], dict[str, np.ndarray], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}},
             {"model.layers.0.mlp.up_proj.qweight": CODES}, "quantization_config: found gptq: "),
    "by dtype alone": ({}, {PLAIN: CODES}, f"{PLAIN}: dtype U8: the weights are quantized"),
    "by scales alone": ({}, {"model.layers.0.mlp.up_proj.absmax": CODES}, "absmax: dtype U8: "),
    "compressed": ({"compression_config": {"format": "pack-quantized"}}, {}, "compression_config"),
    "MLX": ({"quantization": {"bits": 4, "group_size": 64}}, {PLAIN: CODES}, "quantization: found"),
    "on loading": ({"quantization_config": {"quant_method": "bitsandbytes"}}, {}, "bitsandbytes: "),
}  # fmt: skip


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_weights_are_refused_as_such(case: str, tmp_path: Path) -> None:
    more, arrays, says = QUANTIZED[case]
    source = make_folder(tmp_path / "q", fields(**more), {**llama_arrays(), **arrays})
    outcome = refused(3, says, "import", source, tmp_path / "out", place=tmp_path)
    assert "hint: give the model it was quantized from" in outcome.err
    vouched = [word for name in more for word in ("--ignore-field", name)]
    if arrays:  # codes stay codes, whatever is said of them
        refused(3, "quantized", "import", source, tmp_path / "out", *vouched, place=tmp_path)
    else:
        assert f"a left-over: {' '.join(vouched)}\n" in outcome.err
        accepted("export", source, tmp_path / "out", *vouched)
        assert not more.keys() & json.loads((tmp_path / "out" / "config.json").read_text()).keys()


def test_a_dtype_of_less_than_a_byte_is_quantized(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "q")
    raw = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(raw.replace(b'"F32"', b'"F4" ', 1))
    refused(3, "is F4, so quantized", "inspect", source, place=tmp_path)
