"""What is not read is called what it is, with a way that leads to the same model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcp_folders
import pytest
import torch
from commands import accepted, refused
from damage import edit_all, rank_files
from growing import rank_arrays
from pico import CONFIGS, make_checkpoint
from pico_dist import make_dist_checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from flmgrow.formats.megatron.unsupported import part_named

TRACKER = "latest_checkpointed_iteration.txt"


def plain_dcp(path: Path, prefix: str, **arguments: Any) -> Path:
    """What torch makes of a run's state as it is, args and all."""
    legacy = make_checkpoint(path / "legacy", "llama", naming="fused", **arguments)
    content = torch.load(rank_files(legacy)[0], weights_only=False)
    state = {key: content[key] for key in ("args", "checkpoint_version", "iteration")}
    state["model"] = {prefix + k: v for k, v in content["model"].items() if v is not None}
    (path / "root").mkdir()
    dcp_folders.save(path / "root/iter_0000030", state)
    (path / "root" / TRACKER).write_text("30")
    return path / "root"


@pytest.mark.parametrize(
    ("prefix", "arguments", "says"),
    [
        ("", {}, r"torch's FSDP \(--ckpt-format torch_dcp\).*hint: .*dcp_to_torch IN"),
        (
            "",
            {"ckpt_format": "fsdp_dtensor"},
            r"\(--ckpt-format fsdp_dtensor\) under other names.*hint: .*-torch-dist IN OUT",
        ),
        ("module.", {"ckpt_format": "torch_dcp"}, r"\(--ckpt-format torch_dcp\)"),
    ],
)
def test_plain_dcp(tmp_path: Path, prefix: str, arguments: dict[str, Any], says: str) -> None:
    root = plain_dcp(tmp_path, prefix, **arguments)
    refused(3, says, "inspect", root, place=tmp_path)


def test_the_way_from_torch_dcp_leads_to_the_same_model(tmp_path: Path) -> None:
    root = plain_dcp(tmp_path, "")
    file = tmp_path / "out/iter_0000030/mp_rank_00/model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    dcp_to_torch_save(root / "iter_0000030", file)
    accepted("reshard", tmp_path / "out/iter_0000030", tmp_path / "b", "--no-optimizer")
    assert rank_arrays(tmp_path / "b") == rank_arrays(tmp_path / "legacy")


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("zarr", "in zarr.*hint: .*megatron-core 0.8 to 0.15 and --ckpt-convert-format torch_dist"),
        ("fsdp_dtensor", "checkpoint of Megatron-FSDP"),
        ("tomorrow", "sharded_backend: found 'tomorrow', wanted torch_dist"),
        (None, "sharded_backend: found NoneType, wanted torch_dist"),
    ],
)
def test_another_backend(tmp_path: Path, backend: str | None, says: str) -> None:
    root = make_dist_checkpoint(tmp_path, "llama")
    (folder,) = root.glob("iter_*")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": backend}))
    refused(3, says, "inspect", root, place=tmp_path)
    (folder / ".metadata").unlink()
    refused(3, says, "inspect", root, place=tmp_path)


def test_ranks_of_2022(tmp_path: Path) -> None:
    root = make_checkpoint(tmp_path / "root", "llama")
    for path in rank_files(root):
        path.rename(path.with_name("model_rng.pt"))
        for replica in range(2):
            beside = path.parent.with_name(f"{path.parent.name}_{replica:03d}")
            beside.mkdir()
            torch.save({}, beside / "optim.pt")
    says = "Megatron-LM of 2022.*hint: rename each model_rng.pt to model_optim_rng.pt"
    refused(3, says, "inspect", root, place=tmp_path)


PARTS: dict[str, Any] = {
    "language_model": {"encoder": {}},
    "mtp.layers.0.eh_proj.weight": torch.zeros(1),
    "decoder.layers.0.mlp.router.weight": torch.zeros(1),
    "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": torch.zeros(1),
    "decoder.layers.0.self_attention.linear_kv_down_proj.weight": torch.zeros(1),
    "decoder.layers.0.mixer.in_proj.weight": torch.zeros(1),
    "decoder.layers.0.mlp.linear_fc1.weight_quantizer._amax": torch.zeros(1),
    "decoder.layers.0.mlp.linear_fc1.adapter.linear_in.weight": torch.zeros(1),
    "module.decoder.final_layernorm.weight": torch.zeros(1),
}
SAYS = {
    "language_model": "a model from before megatron-core.*hint: .*--loader legacy --saver core",
    "mtp.": "layers for multi-token prediction.*hint: .*without --mtp-num-layers",
    "experts": "a mixture of experts.*hint: there is no way around it",
    "router": "a mixture of experts",
    "kv_down": "multi-head latent attention",
    "mixer": "state-space or linear-attention layers",
    "_amax": "a quantized model.*hint: save it before it is quantized",
    "adapter": "adapters beside the weights.*hint: merge them",
    "module.": "NeMo or Megatron-FSDP",
}


@pytest.mark.parametrize("key", PARTS)
def test_parts_of_other_models(tmp_path: Path, key: str) -> None:
    says = next(text for part, text in SAYS.items() if part in key)
    root = make_checkpoint(tmp_path / "a", "llama")
    edit_all(root, lambda content: content["model"].update({key: PARTS[key]}))
    outcome = refused(3, says, "inspect", root, place=tmp_path)
    assert "--ignore-arg" not in outcome.err


def added(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize("key", [key for key in PARTS if key != "language_model"])
def test_parts_in_a_distributed_checkpoint(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pico_dist

    made = pico_dist.dist_state

    def with_part(legacy: Path, tp: int) -> Any:
        state, boxes = made(legacy, tp)
        return {**state, key.replace("layers.0.", "layers."): PARTS[key]}, boxes

    monkeypatch.setattr(pico_dist, "dist_state", with_part)
    says = next(text for part, text in SAYS.items() if part in key)
    root = make_dist_checkpoint(tmp_path, "llama")
    outcome = refused(3, says, "inspect", root, place=tmp_path)
    assert "--ignore-arg" not in outcome.err


@pytest.mark.parametrize("name", CONFIGS)
def test_no_part_of_a_dense_model_is_taken_for_one(tmp_path: Path, name: str) -> None:
    for naming in ("local", "fused"):
        root = make_checkpoint(tmp_path / naming, name, naming=naming)
        for key in torch.load(rank_files(root)[0], weights_only=False)["model"]:
            assert part_named(key) is None
