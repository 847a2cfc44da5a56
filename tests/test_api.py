"""The public face: the words of the command line, values that cannot be wrong, nothing imported
before it is needed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import accepted
from commands import flmgrow as flmgrow_command
from growing import all_files, checkpoint_logits, tokens_for
from hf_folders import make_folder
from pico import CONFIGS, logical_weights, make_checkpoint

import flmgrow
from flmgrow.given import ReadOptionsGiven

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "python.md"


def test_importing_it_imports_neither_torch_nor_numpy() -> None:
    program = "import sys, flmgrow; print(*({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_everything_that_is_public_is_there() -> None:
    assert all(getattr(flmgrow, name) is not None for name in flmgrow.__all__)
    assert set(flmgrow.__all__) <= set(dir(flmgrow))
    with pytest.raises(AttributeError):
        getattr(flmgrow, "shrink")  # noqa: B009


def test_tensors_have_the_axes_names_and_no_padding(tmp_path: Path) -> None:
    wanted = logical_weights(CONFIGS["llama"])
    with flmgrow.open(make_checkpoint(tmp_path / "a", "llama")) as source:
        for name in source.tensors:
            found = source.tensor(name)
            shift = source.checkpoint.reader.tensors[name].shift
            assert np.array_equal(np.asarray(found) + shift, wanted[name])
            assert list(found.shape.values()) == list(wanted[name].shape)
        query = source.tensor("query", layer=3)
        assert query.axes == ("kv_group", "query_per_group", "head_dim", "hidden")
        assert np.array_equal(query.values, wanted["query"][3])
        assert source.tensor("embedding").shape["vocab"] == source.model.vocab
        assert source.parameters == sum(source.tensor(n).values.size for n in source.tensors)


def test_states_of_the_optimizer_are_tensors_too(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    with flmgrow.open(path) as source:
        found = source.tensor("up", 0, state="exp_avg")
        assert found.values.shape == source.tensor("up", 0).values.shape
        assert not np.array_equal(found.values, source.tensor("up", 0).values)
        with pytest.raises(flmgrow.UsageError, match="state 'momentum'"):
            source.tensor("up", 0, state="momentum")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wquery", None), "tensor 'wquery'"),
        (("query", 4), "has no layer 4"),
        (("query", -1), "has no layer -1"),
        (("embedding", 0), "has no layer 0"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, words: tuple[str, int | None], message: str
) -> None:
    path = make_checkpoint(tmp_path / "a", "llama")
    with (
        flmgrow.open(path) as source,
        pytest.raises(flmgrow.UsageError, match=re.escape(message)),
    ):
        source.tensor(*words)


def test_what_it_writes_is_what_the_command_writes(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", optimizer=True)
    words = "--method zero --hidden-size 16 --num-layers 6 --tp 2 --seed 3"
    accepted("expand", source, tmp_path / "command", *words.split())
    with flmgrow.open(source) as opened:
        plan = flmgrow.plan(opened, method="zero", hidden_size=16, num_layers=6, tp=2, seed=3)
        seen: list[int] = []
        made = plan.write(tmp_path / "api", workers=2, progress=seen.append)
        assert sum(seen) == plan.total_bytes
        assert not made.found
        assert plan.write(tmp_path / "api").found
    wanted, found = all_files(tmp_path / "command"), all_files(tmp_path / "api")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []


def test_tensors_become_arrays_of_any_dtype(tmp_path: Path) -> None:
    with flmgrow.open(make_checkpoint(tmp_path / "a", "llama")) as source:
        found = source.tensor("up", 0)
    assert np.asarray(found) is found.values
    assert np.asarray(found, dtype=np.float32).dtype == np.float32
    copied = np.array(found)
    copied += 1
    assert not np.array_equal(copied, found.values)


def test_verify_reads_a_source_as_it_was_read_for_its_result(tmp_path: Path) -> None:
    """Its manifest records the arguments that were given in the place of missing ones."""
    source = make_checkpoint(tmp_path / "a", "llama", num_attention_heads=7)
    given: ReadOptionsGiven = {"set_arguments": {"num_attention_heads": 8}}
    flmgrow.reshard(source, tmp_path / "b", tp=2, reading=given)
    assert flmgrow.verify(source, tmp_path / "b").proven
    assert flmgrow.verify(source, tmp_path / "b", reading=given).proven
    with pytest.raises(flmgrow.BadCheckpointError):
        flmgrow.open(source)


def test_a_plan_prints_itself_and_is_data(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    shown = accepted("expand", source, tmp_path / "b", "--num-layers", 6, "--dry-run").out
    with flmgrow.open(source) as opened:
        plan = flmgrow.plan(opened, num_layers=6)
        lines = [line for line in shown.splitlines() if not line.startswith("memory")]
        assert str(plan).splitlines() == [line.replace(" --method ", " method ") for line in lines]
        assert plan.to_json()["result"]["model"]["layers"] == plan.model.layers == 6


def test_a_plan_carries_masks_by_itself(tmp_path: Path) -> None:
    """Nothing but the source has to be named: a mask that was forgotten would change the model."""
    source = make_checkpoint(tmp_path / "a", "llama")
    flmgrow.expand(source, tmp_path / "b", ffn_hidden_size=32)
    flmgrow.reshard(tmp_path / "b", tmp_path / "c", tp=2)
    with flmgrow.open(tmp_path / "c") as moved:
        assert list(moved.masks) == ["ffn"]
    assert flmgrow.verify(source, tmp_path / "c").equal


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "zreo"},
        {"optimizer": "kepp"},
        {"new_layers": "rnadom"},
        {"hidden_sizes": 16},
        {"hidden_size": "16"},
        {"hidden_size": 1},
        {"dtype": "float8"},
        {"kv_channels": 8},
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    with pytest.raises(flmgrow.UsageError):
        flmgrow.expand(source, tmp_path / "b", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("words", [[], ["--tensors"], ["--health"]])
def test_it_tells_of_a_checkpoint_what_the_command_tells(tmp_path: Path, words: list[str]) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    accepted("expand", source, tmp_path / "b", "--hidden-size", 16)
    found = flmgrow.inspect(tmp_path / "b", health="--health" in words)
    told = json.loads(accepted("inspect", tmp_path / "b", *words, "--json").out)
    assert json.loads(json.dumps(found.to_json(tensors="--tensors" in words))) == told
    assert [member["name"] for member in told["family"]] == ["a", "b"]


def test_damage_is_found_as_by_the_command(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "a", "llama")
    found = flmgrow.integrity(path)
    outcome = flmgrow_command("verify", "--integrity", path, "--json")
    assert json.loads(json.dumps(found.to_json())) == json.loads(outcome.out)
    assert (found.equal, found.exit_code) == (True, outcome.code)
    file = next(path.rglob("model_optim_rng.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    damaged = flmgrow.integrity(path)
    assert (damaged.equal, damaged.text) == (False, "DAMAGED")


def test_untying_is_said_once(tmp_path: Path) -> None:
    """It is about how a source is read, and about what is made of it."""
    source = make_checkpoint(tmp_path / "a", "llama")
    accepted("expand", source, tmp_path / "command", "--untie")
    flmgrow.expand(source, tmp_path / "api", untie=True)
    assert all_files(tmp_path / "command") == all_files(tmp_path / "api")


def test_a_verdict_says_what_differs(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    other = make_checkpoint(tmp_path / "b", "llama", seed=1)
    verdict = flmgrow.verify(source, other)
    assert not verdict.equal
    assert [check.name for check in verdict.checks if check.passed is False] == ["function"]


def test_folders_of_other_formats(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf")
    with flmgrow.open(folder) as source:
        assert source.format == "huggingface"
    flmgrow.import_(folder, tmp_path / "m", tp=2, running={"workers": 1})
    flmgrow.reshard(tmp_path / "m", tmp_path / "d", format="torch_dist")
    flmgrow.export(tmp_path / "d", tmp_path / "back")
    assert flmgrow.verify(folder, tmp_path / "back").equal
    with pytest.raises(flmgrow.UsageError, match="wanted a Hugging Face folder"):
        flmgrow.import_(tmp_path / "m", tmp_path / "n")


def test_a_model_in_memory_has_the_masks_of_its_checkpoint(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama")
    flmgrow.expand(source, tmp_path / "b", ffn_hidden_size=32, num_layers=6)
    tokens = tokens_for(CONFIGS["llama"].vocab)
    small, large = flmgrow.load_model(source), flmgrow.load_model(tmp_path / "b")
    # Attention is torch's fused one where all weights are at hand: the same sums in another order.
    assert torch.allclose(small(tokens), checkpoint_logits(source, tokens), rtol=0, atol=1e-14)
    assert torch.allclose(large(tokens), small(tokens), rtol=0, atol=1e-12)
    flmgrow.bake(tmp_path / "b", tmp_path / "c", 1.0)
    baked = flmgrow.load_model(tmp_path / "c", dtype=torch.float32)
    assert not torch.allclose(baked(tokens).double(), small(tokens), atol=1e-3)


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "ckpt-16b", "llama")
    (tmp_path / "configs").symlink_to(PAGE.parents[2] / "configs")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_each_place_has_its_own_words(tmp_path: Path) -> None:
    """What a function says with its arguments, a command says with its options, as JSON, too."""
    source = make_checkpoint(tmp_path / "a", "llama")
    with flmgrow.open(source) as opened:
        plan = flmgrow.plan(opened, num_layers=6, method="mask")
        assert any("use method zero or copy" in note for note in plan.notes)
        assert "use method zero or copy" in str(plan)
    command = ("expand", source, tmp_path / "b", "--num-layers", 6, "--method", "mask")
    for shown in ((), ("--json",)):
        assert "use --method zero or copy" in accepted(*command, "--dry-run", *shown).out
    outcome = accepted(*command)
    assert "use --method zero or copy" in outcome.err
    assert "use --method zero or copy" in (tmp_path / "b" / "flmgrow.json").read_text()

    with pytest.raises(flmgrow.UsageError, match=r"dtype int3: unknown"):
        flmgrow.expand(source, tmp_path / "c", dtype="int3")
    refused = flmgrow_command("expand", source, tmp_path / "c", "--dtype", "int3")
    assert refused.err.startswith("error: --dtype int3: unknown")
