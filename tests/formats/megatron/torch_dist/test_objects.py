"""Whatever a distributed checkpoint holds beside arrays goes to its own layer, or is told."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow, refused
from damage import rank_files
from growing import grow_checkpoint
from pico import CONFIGS, even, make_checkpoint
from pico_dist import dist_state, save_dist

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.torch_dist.objects import extra_state_key
from flmgrow.formats.megatron.torch_dist.reader import open_distributed
from flmgrow.formats.opening import distributed_folder, open_checkpoint
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

MODULES = [
    "self_attention.linear_qkv", "self_attention.core_attention", "self_attention.linear_proj",
    "mlp.linear_fc1", "mlp.linear_fc2",
]  # fmt: skip
"""Those of Transformer Engine; one has no parameters of its own."""

LAYERS = CONFIGS["llama"].layers
State = dict[str, Any]


def scales(of: str) -> torch.Tensor:
    """What a module keeps: any bytes, and no two modules the same."""
    return torch.frombuffer(bytearray(f"scales of {of}".encode()), dtype=torch.uint8).clone()


def with_scales(state: State, numbered: bool) -> None:
    """Give every module of every layer, and the final norm, a state of its own."""
    for key in [key for key in state if "_extra_state" in key]:
        del state[key]
    for layer, module in ((n, m) for n in range(LAYERS) for m in MODULES):
        key = f"{layer}.{module}" if numbered else module
        place = "0_1" if numbered else f"{layer}_{LAYERS}"
        state[f"decoder.layers.{key}._extra_state/shard_{place}"] = [scales(f"{layer} {module}")]
    state["decoder.final_layernorm._extra_state/shard_0_1"] = [scales("the end")]


def make(path: Path, change: Callable[[State], object], **common: Any) -> Path:
    """Write a distributed checkpoint whose state was changed."""
    legacy = make_checkpoint(path / "legacy", "llama", naming="fused")
    args = torch.load(rank_files(legacy)[0], weights_only=False)["args"]
    args.transformer_impl = "transformer_engine"
    state, boxes = dist_state(legacy, 1)
    change(state)
    return save_dist(path / "dist", args, state, boxes, **common)


def numbered(state: State) -> None:
    """Take the stack of layers apart, as megatron-core does where they are not alike."""
    for key in [
        k for k, v in state.items() if k.startswith("decoder.layers.") and "_extra" not in k
    ]:
        for layer, array in enumerate(state.pop(key)):
            state[key.replace("layers.", f"layers.{layer}.")] = array.clone()
    with_scales(state, numbered=True)


def legacy_scales(root: Path, layout: Layout) -> dict[str, bytes]:
    """What torch finds in a legacy checkpoint, layers numbered through the model."""
    found = {}
    for file in rank_files(root):
        content = torch.load(file, weights_only=False)
        pipeline = int(file.parent.name.split("_")[3]) if layout.pp > 1 else 0
        for chunk in range(layout.vpp):
            first, _ = layout.chunk_range(pipeline, chunk)
            for key, value in content["model" if layout.vpp == 1 else f"model{chunk}"].items():
                if key.endswith("_extra_state"):
                    parts = key.split(".")
                    parts[2:3] = (
                        [str(int(parts[2]) + first)] if parts[1] == "layers" else parts[2:3]
                    )
                    found[".".join(parts)] = bytes(value.numpy())
    return found


def wanted(donors: list[int]) -> dict[str, bytes]:
    """What a checkpoint must hold whose layers come from these."""
    keys = {
        f"decoder.layers.{layer}.{module}._extra_state": f"{donor} {module}"
        for layer, donor in enumerate(donors)
        for module in MODULES
    }
    keys["decoder.final_layernorm._extra_state"] = "the end"
    return {key: f"scales of {of}".encode() for key, of in keys.items()}


FORMS = {"stacked": lambda state: with_scales(state, numbered=False), "numbered": numbered}


@pytest.mark.parametrize(
    "layout", [even(CONFIGS["llama"], *s) for s in [(1, 1), (2, 2), (1, 2, 2)]]
)
@pytest.mark.parametrize("form", FORMS)
def test_every_state_goes_to_its_layer_and_back(tmp_path: Path, form: str, layout: Layout) -> None:
    source = make(tmp_path, FORMS[form])
    request = LayoutRequest(layout.tp, layout.pp, layout.vpp)
    grow_checkpoint(source, tmp_path / "a", request=request, file_format="megatron")
    assert legacy_scales(tmp_path / "a", layout) == wanted([*range(LAYERS)])
    grow_checkpoint(
        tmp_path / "a", tmp_path / "b", request=LayoutRequest(1, 1), file_format="torch_dist"
    )
    grow_checkpoint(
        tmp_path / "b", tmp_path / "c", request=LayoutRequest(1, 1), file_format="megatron"
    )
    assert legacy_scales(tmp_path / "c", even(CONFIGS["llama"])) == wanted([*range(LAYERS)])


@pytest.mark.parametrize("method", ["zero", "copy"])
def test_a_new_layer_has_those_of_its_donor(tmp_path: Path, method: str) -> None:
    source = make(tmp_path, FORMS["stacked"])
    target = Target(layers=LAYERS + 2, methods=parse_methods(method))
    plan = grow_checkpoint(source, tmp_path / "a", target, file_format="torch_dist")
    grow_checkpoint(tmp_path / "a", tmp_path / "b", file_format="megatron")
    donors = list(plan.target.donors)
    assert len(donors) == LAYERS + 2
    assert legacy_scales(tmp_path / "b", even(plan.target.config)) == wanted(donors)
    assert re.search(r"^ok +carried ", accepted("verify", source, tmp_path / "a").out, re.MULTILINE)


def test_verify_finds_a_state_that_is_gone_or_another_layers(tmp_path: Path) -> None:
    source = make(tmp_path, FORMS["stacked"])
    grow_checkpoint(source, tmp_path / "a", file_format="megatron")
    (file,) = rank_files(tmp_path / "a")
    content = torch.load(file, weights_only=False)
    sound = dict(content["model"])
    key = "decoder.layers.1.self_attention.core_attention._extra_state"
    for change in (None, sound[key.replace("layers.1", "layers.0")]):
        content["model"][key] = change
        torch.save(content, file)
        outcome = flmgrow("verify", source, tmp_path / "a", "--skip-checksums")
        assert outcome.code == 1
        says = rf"^DIFFERENT +carried +{re.escape(key)} of tensor rank 0 is"
        assert re.search(says, outcome.out, re.MULTILINE)


def test_what_is_not_carried_is_told(tmp_path: Path) -> None:
    def change(state: State) -> None:
        with_scales(state, numbered=False)
        state["rng_state/shard_0.0_1.1"] = [{"random_rng_state": (3, (1, 2), None)}]
        state["rerun_state_machine_state/shard_0_2"] = [{"mode": "disabled"}]
        state["rerun_state_machine_state/shard_1_2"] = [{"mode": "disabled"}]

    source = make(tmp_path, change, rerun_state_machine={"mode": "disabled", "sharded": None})
    outcome = accepted("reshard", source, tmp_path / "a", "--format", "megatron")
    assert "note: left out: rng_state\n" in outcome.err
    assert "note: left out: rerun_state_machine\n" in outcome.err
    assert "_extra_state" not in outcome.err
    assert "rerun_state_machine" not in torch.load(
        rank_files(tmp_path / "a")[0], weights_only=False
    )
    outcome = accepted("export", source, tmp_path / "b")
    assert "note: left out: _extra_state\n" in outcome.err
    found = json.loads(accepted("inspect", source, "--json").out)["also_holds"]
    assert found == ["rng_state", "rerun_state_machine", "_extra_state"]


def test_an_object_nobody_knows_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    source = make(tmp_path, lambda state: state.update({"energy_meter/shard_0_1": [{"joules": 3}]}))
    says = (
        r"energy_meter/shard_0_1: an object .* not know\nhint: .*--ignore-arg energy_meter leaves"
    )
    refused(3, says, "reshard", source, tmp_path / "a", place=tmp_path)
    vouched = ("--ignore-arg", "energy_meter")
    outcome = accepted("reshard", source, tmp_path / "a", *vouched)
    assert "note: left out: energy_meter\n" in outcome.err
    assert json.loads((tmp_path / "a/flmgrow.json").read_text())["dropped"] == ["energy_meter"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("decoder.layers.mlp.linear_fc1._extra_state/shard_9_10", "of layer 9, the args say 4"),
        ("decoder.layers.9.mlp.linear_fc1._extra_state/shard_0_1", "of layer 9, the args say 4"),
        ("decoder.layers.0.mlp.linear_fc1._extra_state/shard_0_1", "fc1._extra_state twice"),
        ("decoder.layers.mlp.experts.linear_fc1._extra_state/shard_0.0_4.2", "mixture of experts"),
        ("mtp.layers.0.eh_proj._extra_state/shard_0_1", "multi-token prediction"),
        ("decoder.thing._extra_state/shard_0_1", "an object that flmgrow does not know"),
    ],
)
def test_a_state_of_no_layer_is_refused(tmp_path: Path, name: str, says: str) -> None:
    source = make(tmp_path, lambda state: state.update({name: [io.BytesIO(b"x")]}))
    with pytest.raises(BadCheckpointError, match=says):
        open_checkpoint(source)


def test_names_of_states() -> None:
    stem = "decoder.layers.mlp.linear_fc1._extra_state"
    assert extra_state_key(f"{stem}/shard_3_4") == "decoder.layers.3.mlp.linear_fc1._extra_state"
    for name in ("rng_state/shard_0_1", f"{stem}/shard_0.1_2.2", stem, "output_layer.weight"):
        assert extra_state_key(name) is None


def test_tensor_ranks_that_differ_keep_their_own_or_it_is_told(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    source = make_checkpoint(tmp_path / "s", config, even(config, 2), naming="fused")
    key = "decoder.layers.0.mlp.linear_fc1._extra_state"
    for rank, file in enumerate(rank_files(source)):
        content = torch.load(file, weights_only=False)
        content["model"][key] = scales(f"rank {rank}")
        torch.save(content, file)
    outcome = accepted("reshard", source, tmp_path / "same")
    assert "_extra_state" not in outcome.err
    for rank, file in enumerate(rank_files(tmp_path / "same")):
        found = torch.load(file, weights_only=False)["model"][key]
        assert torch.equal(found, scales(f"rank {rank}"))
    accepted("verify", source, tmp_path / "same")
    outcome = accepted("reshard", source, tmp_path / "one", "--tp", 1)
    assert (
        "note: left out: _extra_state of tensor ranks that differ from the first's" in outcome.err
    )
    accepted("verify", source, tmp_path / "one")


def test_megatron_core_0_15_has_metadata_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subclass of torch's, which is pickled by its own name."""
    import dataclasses
    import pickle
    import sys
    import types

    from torch.distributed.checkpoint.metadata import Metadata

    module = "megatron.core.dist_checkpointing.strategies.torch"
    own = dataclasses.make_dataclass(
        "MCoreMetadata", [("mcore_data", object, None)], bases=(Metadata,)
    )
    own.__module__ = own.__qualname__ = module
    own.__qualname__ = "MCoreMetadata"
    fake = types.ModuleType(module)
    vars(fake)["MCoreMetadata"] = own
    monkeypatch.setitem(sys.modules, module, fake)
    source = make(tmp_path, FORMS["stacked"])
    (path,) = source.rglob(".metadata")
    plain = pickle.loads(path.read_bytes())
    data = {"x": {"nd_reformulated_orig_global_shape": (4, 8)}}
    path.write_bytes(pickle.dumps(own(**vars(plain), mcore_data=data)))
    with open_distributed(source, distributed_folder(path.parent)) as opened:
        assert opened.config == CONFIGS["llama"]
    vars(fake)["MCoreMetadata2"] = own
    own.__qualname__ = "MCoreMetadata2"
    path.write_bytes(pickle.dumps(own(**vars(plain))))
    with pytest.raises(BadCheckpointError, match="MCoreMetadata2, which is not known") as caught:
        open_checkpoint(source)
    assert "--ckpt-convert-format torch" in caught.value.hint
    assert "hostile" not in caught.value.hint
