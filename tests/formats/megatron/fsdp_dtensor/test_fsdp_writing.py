"""What is written as ``fsdp_dtensor`` is what megatron-core saves, to torch's own eyes and to ours.

Names, halves and steps are compared with those that megatron-core was seen to save
(``pico_fsdp.py``); that it loads them itself, ``test_real_fsdp.py`` shows.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import dcp_folders
import pytest
import torch
from commands import accepted, flmgrow, refused, stop_after
from growing import grow_checkpoint, same_bits
from optimizer_states import assert_same, states
from pico import CONFIGS, even, make_checkpoint
from pico_forms import make_form
from pico_fsdp import make_fsdp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flmgrow.errors import StorageError
from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.formats.megatron.fsdp_dtensor import writer
from flmgrow.model.mup import KIND, Kind
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

write = partial(grow_checkpoint, file_format="fsdp_dtensor")
RUN = {"use_megatron_fsdp": True, "use_distributed_optimizer": True, "ckpt_format": "fsdp_dtensor"}
PLAIN = LayoutRequest(tp=1, pp=1)
slow = pytest.mark.slow


def grown(method: str, seed: int) -> Target:
    return Target(layers=6, hidden=20, ffn=32, methods=parse_methods(method), seed=seed)


def folder_of(path: Path) -> Path:
    (folder,) = path.glob("iter_*")
    return folder


def loaded(path: Path) -> dict[str, Any]:
    """Every item of a checkpoint, as torch loads it."""
    facts = FileSystemReader(folder_of(path)).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: torch.empty(fact.size, dtype=fact.properties.dtype)
        if isinstance(fact, TensorStorageMetadata)
        else None
        for name, fact in facts.items()
    }
    dcp_folders.load(folder_of(path), state)
    return state


def differences(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """The names of items of ``a`` that ``b`` does not have, or has otherwise."""

    def same(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x.dtype == y.dtype and torch.equal(x, y)
        return type(x) is type(y) and bool(x == y)

    return {name for name in a if name not in b or not same(a[name], b[name])}


CASES = [
    ("llama", 2, "fused"),
    pytest.param("llama", 1, "local", marks=slow),
    pytest.param("gpt", 2, "local", marks=slow),
    pytest.param("gpt", 1, "fused", marks=slow),
    pytest.param("qwen", 1, "local", marks=slow),
    pytest.param("tele", 2, "fused", marks=slow),
]


@pytest.mark.parametrize(("model", "tp", "naming"), CASES)
def test_torch_reads_of_it_what_megatron_core_saves(
    tmp_path: Path, model: str, tp: int, naming: str
) -> None:
    """By way of another format, nothing of the original's names or cuts is known."""
    source = make_fsdp(tmp_path / "a", model, ranks=3, tp=tp, naming=naming)
    grow_checkpoint(source, tmp_path / "b", file_format="torch_dist")
    write(tmp_path / "b", tmp_path / "c")
    wanted, found = loaded(source), loaded(tmp_path / "c")
    left = {name for name in wanted if name.startswith("rng_state.")}
    assert differences(wanted, found) == {*left, "args"}
    added = {name for name in found if name not in wanted}
    assert all(re.search(r"\.param_to_group_meta\..*\.step$", name) for name in added)
    assert {found[name] for name in added} == {30}
    assert vars(found["args"]).items() >= RUN.items()
    assert not (folder_of(tmp_path / "c") / "metadata.json").exists()  # torch_dist is known by it
    assert_same(source, tmp_path / "c")


def test_one_element_would_be_seen(tmp_path: Path) -> None:
    source = make_fsdp(tmp_path / "a", "llama", ranks=2)
    state = loaded(source)
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel():
            changed = value.clone()
            changed.view(-1)[-1] += 1
            assert differences(state, {**state, name: changed}) == {name}
    name = next(name for name in state if name.endswith(".wd_mult"))
    assert differences(state, {**state, name: 0.5}) == {name}


@slow
@pytest.mark.parametrize("distributed", [False, True])
def test_legacy_to_it_and_on_is_as_without_it(tmp_path: Path, distributed: bool) -> None:
    """Four ranks and a tied table, grouped queries, gated units, a padded vocabulary."""
    source = (
        make_form(tmp_path / "a", "llama", 1)
        if distributed
        else make_checkpoint(
            tmp_path / "a", "llama", even(CONFIGS["llama"], tp=2, pp=2), dtype="bfloat16",
            optimizer=True, use_distributed_optimizer=False,
        )
    )  # fmt: skip
    write(source, tmp_path / "b", request=PLAIN)
    accepted("verify", source, tmp_path / "b")
    accepted("verify", "--integrity", tmp_path / "b")
    grow_checkpoint(tmp_path / "b", tmp_path / "c", file_format="torch_dist")
    grow_checkpoint(source, tmp_path / "d", request=PLAIN, file_format="torch_dist")
    found, wanted = states(tmp_path / "c"), states(tmp_path / "d")
    assert list(found) == list(wanted) == ["weight", "master", "exp_avg", "exp_avg_sq"]
    for kind, tensors in wanted.items():
        for name, values in tensors.items():
            assert same_bits(found[kind][name], values), (kind, name)
    accepted("verify", source, tmp_path / "c")


@slow
@pytest.mark.parametrize("method", ["zero", "mask"])
def test_expanding_into_it_is_expanding_and_resharding(tmp_path: Path, method: str) -> None:
    source = make_form(tmp_path / "a", "llama", 1)
    target = grown(method, seed=3)
    request = LayoutRequest(tp=2, pp=1)
    write(source, tmp_path / "once", target, request)
    grow_checkpoint(source, tmp_path / "grown", target)
    write(tmp_path / "grown", tmp_path / "twice", request=request)
    once, twice = (
        [file.read_bytes() for file in sorted(folder_of(tmp_path / name).glob("*.distcp"))]
        for name in ("once", "twice")
    )
    assert len(once) == 2 * (1 + 6)  # of two tensor ranks: what is of no layer, and six layers
    assert once[1:] == twice[1:]  # the first one has the arguments as well
    assert_same(tmp_path / "once", tmp_path / "twice")
    accepted("verify", source, tmp_path / "once")
    other = grown(method, seed=4)
    write(source, tmp_path / "other", other, request)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "once", tmp_path / "other")


def test_chunks_are_small_and_cut_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of heads is the one thing that may be larger."""
    source = make_form(tmp_path / "a", "llama", 1)
    monkeypatch.setattr(writer, "CHUNK_ELEMENTS", 100)
    write(source, tmp_path / "b", request=LayoutRequest(tp=2, padded_vocab=56))
    assert_same(source, tmp_path / "b")
    config = CONFIGS["llama"]
    group = (config.queries_per_group + 2) * config.head_dim
    listed = read_metadata(folder_of(tmp_path / "b")).tensors
    assert any(len(tensor.chunks) > 4 for tensor in listed.values())
    for name, tensor in listed.items():
        for chunk in tensor.chunks if tensor.shape else ():
            rows, *columns = chunk.sizes
            if ".linear_qkv.weight" in name:
                assert rows == group
                assert not chunk.offsets[0] % group
            else:
                assert rows == 1 or rows * (columns or [1])[0] <= 100


@slow
def test_it_stays_what_it_is(tmp_path: Path) -> None:
    """The source's format is kept where none is asked for; another one is no run of its kind."""
    source = make_fsdp(tmp_path / "a", "llama")
    outcome = accepted("reshard", source, tmp_path / "b")
    assert "left out: rng_state" in outcome.out + outcome.err
    assert "Megatron (fsdp_dtensor), Transformer Engine" in accepted("inspect", tmp_path / "b").out
    accepted("verify", source, tmp_path / "b")
    accepted("reshard", source, tmp_path / "c", "--format", "torch_dist")
    (common,) = (tmp_path / "c").rglob("common.pt")
    found = torch.load(common, weights_only=False)
    assert found["args"].ckpt_format == "torch_dist"
    assert found["args"].use_megatron_fsdp is False
    assert found["opt_param_scheduler"] == {"max_lr": 3e-4, "num_steps": 960}
    assert found["num_floating_point_operations_so_far"] == 7


@slow
def test_local_names_stay_local_whatever_the_arguments_say(tmp_path: Path) -> None:
    def change(state: dict[str, Any], boxes: object) -> None:
        state["args"].transformer_impl = "transformer_engine"

    source = make_fsdp(tmp_path / "a", "llama", naming="local", change=change)
    grow_checkpoint(source, tmp_path / "b")
    weights = [name for name in loaded(source) if name.startswith("model.")]
    assert weights == [name for name in loaded(tmp_path / "b") if name.startswith("model.")]


@slow
def test_without_an_optimizer_weights_are_what_they_are(tmp_path: Path) -> None:
    source = make_form(tmp_path / "a", "llama", 1)
    accepted("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor", "--no-optimizer")
    state = loaded(tmp_path / "b")
    assert not [name for name in state if name.startswith("opt")]
    dtypes = {value.dtype for value in state.values() if isinstance(value, torch.Tensor)}
    assert dtypes == {torch.bfloat16}
    accepted("verify", source, tmp_path / "b")


@slow
def test_a_float32_run(tmp_path: Path) -> None:
    source = make_fsdp(tmp_path / "a", "gpt", ranks=3, dtype="float32")
    grow_checkpoint(source, tmp_path / "b")
    wanted, found = loaded(source), loaded(tmp_path / "b")
    left = {name for name in wanted if name.startswith("rng_state.")}
    assert differences(wanted, found) == {*left, "args"}


@slow
def test_scales_of_transformer_engine_are_told_and_left_out(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", dtype="bfloat16", extra_state="bytes")
    outcome = accepted("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor")
    assert "left out: _extra_state: Megatron-FSDP keeps none" in outcome.out + outcome.err
    assert not [name for name in loaded(tmp_path / "b") if "_extra_state" in name]
    accepted("verify", source, tmp_path / "b")


@slow
def test_a_run_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise StorageError("full")

    source = make_form(tmp_path / "a", "llama", 1)
    command = ("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor")
    with monkeypatch.context() as patch:
        stop_after(2, patch, stop)
        assert flmgrow(*command).code == 4
    assert not (tmp_path / "b").exists()
    with monkeypatch.context() as patch:
        stop_after(5, patch, stop)  # of seven: two are there
        accepted(*command)
    assert_same(source, tmp_path / "b")


@slow
def test_damage_has_a_name(tmp_path: Path) -> None:
    write(make_form(tmp_path / "a", "llama", 1), tmp_path / "b")
    listed = read_metadata(folder_of(tmp_path / "b")).tensors
    name = "model.module.decoder.layers.1.mlp.linear_fc2.weight"
    (chunk,) = listed[name].chunks
    shard = folder_of(tmp_path / "b") / chunk.file
    data = bytearray(shard.read_bytes())
    data[chunk.offset + chunk.length // 2] ^= 1
    shard.write_bytes(data)
    outcome = flmgrow("verify", "--integrity", tmp_path / "b")
    assert outcome.code == 1
    assert f"it holds {name}" in outcome.out


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    layout = even(CONFIGS["llama"], pp=2, vpp=2)
    source = make_checkpoint(tmp_path / "a", "llama", layout, dtype="bfloat16", optimizer=True)
    into = ("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor")
    refused(2, "--pp 2: fsdp_dtensor has no pipeline stages.*hint: .*--pp 1", *into, place=tmp_path)
    refused(2, "--tp 3 |TP3 cannot split", *into, "--tp", 3, "--pp", 1, place=tmp_path)
    half = make_checkpoint(tmp_path / "c", "llama", dtype="float16", optimizer=True)
    (file,) = half.rglob("model_optim_rng.pt")
    content = torch.load(file, weights_only=False)
    content["optimizer"]["grad_scaler"] = {"scale": 1024.0}
    torch.save(content, file)
    into = ("reshard", half, tmp_path / "b", "--format", "fsdp_dtensor")
    says = "holds grad_scaler: fsdp_dtensor has no place for it.*hint: .*--no-optimizer"
    refused(2, says, *into, place=tmp_path)
    accepted(*into, "--no-optimizer")


@slow
def test_verify_finds_weights_that_are_not_their_masters_rounded(tmp_path: Path) -> None:
    """They are the one thing of an optimizer's checkpoint that has no place there."""

    def change(state: dict[str, Any], boxes: object) -> None:
        (name,) = (
            n for n in state if n.startswith("optimizer.state.param.") and "linear_fc2." in n
        )
        state[name] = state[name] * 1.25

    source = make_form(tmp_path / "a", "llama", 1, change=change)
    accepted("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor")
    outcome = flmgrow("verify", source, tmp_path / "b")
    assert outcome.code == 1
    assert re.search(r"^DIFFERENT +function ", outcome.out, re.MULTILINE)
    found, wanted = states(tmp_path / "b"), states(source)
    assert same_bits(found["master"]["down"], wanted["master"]["down"])
    assert not same_bits(found["weight"]["down"], wanted["weight"]["down"])
    assert same_bits(found["weight"]["up"], wanted["weight"]["up"])


@slow
def test_a_param_group_without_parameters_is_refused(tmp_path: Path) -> None:
    """Only parameters have settings there: those of no parameter would be lost."""
    source = make_form(tmp_path / "a", "llama", 1)
    (common,) = source.rglob("common.pt")
    content = torch.load(common, weights_only=False)  # our own file
    groups = content["optimizer"]["optimizer"]["param_groups"]
    groups.append({**groups[1], KIND: str(Kind.HIDDEN)})  # matrices, but without weight decay
    torch.save(content, common)
    into = ("reshard", source, tmp_path / "b", "--format")
    says = "a param group has no parameters: fsdp_dtensor .*hint: .*--format torch_dist"
    refused(2, says, *into, "fsdp_dtensor", place=tmp_path)
    accepted(*into, "torch_dist")
    (common,) = (tmp_path / "b").rglob("common.pt")
    assert (
        torch.load(common, weights_only=False)["optimizer"]["optimizer"]["param_groups"] == groups
    )
    accepted("reshard", source, tmp_path / "c", "--format", "fsdp_dtensor", "--no-optimizer")


def test_weights_without_masters_are_refused(tmp_path: Path) -> None:
    """They would be read again as masters that nobody kept."""

    def change(state: dict[str, Any], boxes: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith("optimizer.state.param.")]:
            del state[name], boxes[name]

    source = make_form(tmp_path / "a", "llama", 1, change=change)
    into = ("reshard", source, tmp_path / "b", "--format", "fsdp_dtensor")
    refused(2, "no float32 masters of its bfloat16 weights.*hint: ", *into, place=tmp_path)
    accepted(*into, "--no-optimizer")
