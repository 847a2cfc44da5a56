"""A request that cannot be carried out is refused before data is read, and says what would do."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands import accepted, flmgrow, refused
from pico import CONFIGS, even, make_checkpoint

from flmgrow.formats.torch_file.file import TorchFile


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: each refusal is shown to leave everything as it was."""
    place = tmp_path_factory.mktemp("requests")
    return make_checkpoint(place / "source", "llama", even(CONFIGS["llama"], tp=2, pp=2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--hidden-size 8", "hidden: wanted 8, the source has 12.*at least as large"),
        ("--num-layers 2", "layer: wanted 2, the source has 4"),
        ("--ffn-hidden-size 8", "ffn: wanted 8, the source has 20"),
        ("--vocab-size 50", "vocab: wanted 50, the source has 51"),
        ("--num-query-groups 2", "kv_group: wanted 2, the source has 4"),
        ("--num-attention-heads 4", "leaves 1 per group.*try --num-attention-heads 8"),
        ("--num-attention-heads 9", "9 heads cannot be shared by 4 .*--num-query-groups"),
        ("--kv-channels 8", "--kv-channels 8: the source has heads of 4.*add heads instead"),
        ("--hidden-size 10000000000000", "hidden: wanted 10000000000000, at most"),
        ("--num-layers 1000000000", "layer: wanted 1000000000, at most 10000"),
        ("--tp 3", "TP3 cannot split kv_group 4 and ffn 20.*sizes: 1, 2, 4"),
        ("--tp 1000000000", "layout TP1000000000"),
        ("--pp 3", "4 layers cannot be spread evenly over PP3.*--pipeline-layers"),
        ("--pp 1 --vpp 2", "a virtual pipeline of 2 needs a pipeline"),
        ("--pipeline-layers 3,3", "the pipeline holds 6 layers, the model has 4"),
        ("--pipeline-layers 5,-1", "layers of a pipeline rank: -1, wanted at least 0"),
        ("--pipeline-layers x", "--pipeline-layers x: not a list of numbers"),
        ("--method grow", "'grow' is no method for width.*one of mask, zero, copy"),
        ("--method width=stack", "'stack' is no method for width"),
        ("--method depht=zero", "'depht' is no dimension.*one of width"),
        ("--num-layers 6 --depth-placement up", "neither end, interleave nor a list"),
        ("--num-layers 6 --depth-placement 1,0,2,3,3,3", "each appear, the first time in order"),
        ("--num-layers 6 --new-layers old", "--new-layers old: wanted copy or random"),
        ("--hidden-size 16 --bake", "cannot be baked.*--method width=zero"),
        ("--dtype int8", "--dtype int8: unknown.*bfloat16"),
        ("--max-memory 1M", "--max-memory is 1 MiB, .* workers need at least"),
        ("--max-memory much", "--max-memory much: not a size"),
        ("--max-memory nanG", "--max-memory nanG: not a size"),
        ("--replicated mean", "--replicated mean: wanted check or rank0"),
        ("--to-params 10", "--to-params 10: the source has 8,208 parameters"),
        ("--to-params nan", "--to-params nan: wanted at most"),
        ("--to-params inf", "--to-params inf: wanted at most"),
        ("--to-params 1e5 --hidden-size 16", "--to-params chooses the sizes"),
        ("--true-vocab-size 3000", "only 64 rows are stored"),
        ("--true-vocab-size 0", "--true-vocab-size.*greater than or equal to 1"),
        ("--iteration -1", "--iteration.*greater than or equal to 0"),
        ("--workers 0", "--workers.*greater than or equal to 1"),
        ("--init-std nan", "--init-std"),
        ("--init-std inf", "--init-std"),
        ("--num-layers many", "--num-layers.*valid integer"),
        ("--num-layer 6", "No such option: --num-layer"),
        ("--num-layers", "--num-layers.*requires an argument"),
        ("extra", "unexpected extra argument"),
    ],
)  # fmt: skip
def test_an_impossible_request_is_refused(
    source: Path, options: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(TorchFile, "read_into", read)
    place = source.parent
    refused(2, says, "expand", source, place / "out", *options.split(), place=place)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("flm", "--hidden-size 16 --method zero", "tied embeddings: centring.*--untie"),
        ("tele", "--untie", "already has a separate head"),
    ],
)
def test_a_growth_without_an_exact_way_is_refused(
    tmp_path: Path, model: str, options: str, says: str
) -> None:
    source = make_checkpoint(tmp_path / "source", model)
    refused(2, says, "expand", source, tmp_path / "out", *options.split(), place=tmp_path)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("grow", "No such command 'grow'"),
        ("bake source out", "source: has no masks to bake"),
        ("bake source out --value 2", "--value.*less than or equal to 1"),
        ("expand source", "Missing argument 'DST'"),
        ("verify source", "DST: is not given"),
        ("verify source source --dtype int8", "--dtype int8: unknown"),
        ("reshard source out --tp 0", "--tp.*greater than or equal to 1"),
    ],
)
def test_an_impossible_command_is_refused(
    source: Path, command: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    refused(2, says, *command.split(), place=source.parent)


# --- target files

ALIASES = "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "hidden_sizes: 24\nfoo: 3",
            "hidden_sizes: there is no such key; foo: there is no such key",
        ),
        ("hidden_size: '24'", "hidden_size: found '24', wanted a valid integer"),
        ("hidden_size: 24.5", "hidden_size: found 24.5, wanted a valid integer"),
        ("hidden_size: true", "hidden_size: found True, wanted a valid integer"),
        ("hidden_size: 2030-01-01", "hidden_size: found '2030-01-01', wanted a valid integer"),
        ("hidden_size: 0x18", "hidden_size: found '0x18', wanted a valid integer"),
        ("hidden_size: -3", "hidden_size: found -3, wanted greater"),
        ("hidden_size: 24\nhidden_size: 48", "the key 'hidden_size' stands twice.* line 2"),
        ("hidden_size: " + "9" * 5000, "digits"),
        ("method: 3", "method.*found 3, wanted a text"),
        ("method: {wid: copy}", "method.*wid"),
        ("method: {width: [copy]}", r"method.*width: found \['copy'\], wanted a text"),
        ("method: &a {width: *a}", "is not YAML that can be read: a value that holds itself"),
        ("pipeline_layers: [a, b]", "pipeline_layers.0: found 'a', wanted a valid integer"),
        ("- 3", r"the whole: found \[3\], wanted a mapping"),
        ("3: 4", "3: keys should be strings"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: [1", "is not YAML"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ('"\\e[31mred": 3', r"\\x1b\[31mred: there is no such key"),
        ("!!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n" + ALIASES + "\nmethod: *i",
            "is not YAML that can be read: more than 1048576 values",
        ),
        ("a: " + "{a: " * 3000, "recursion"),
        ("[" * 60_000, "recursion"),
        ("#" * 70_000, "has 70000 bytes, wanted at most"),
        ("a: \0", "is not YAML"),
        ("tp: 3", "TP3 cannot split"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_bad_target_file_is_refused(source: Path, content: str, says: str) -> None:
    place = source.parent
    (place / "to.yaml").write_text(content)
    refused(2, says, "expand", source, place / "out", "--to", place / "to.yaml", place=place)


def test_a_target_file_that_is_none_is_refused(source: Path, tmp_path: Path) -> None:
    command = ("expand", source, tmp_path / "out", "--to")
    refused(2, "none.yaml: No such file", *command, tmp_path / "none.yaml", place=tmp_path)
    refused(2, "source: is not a regular file", *command, source, place=tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    refused(2, "binary: is not YAML", *command, tmp_path / "binary", place=tmp_path)


# --- tokens


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Expecting value"),
        ("[1, 2", "Expecting"),
        ("{}", "whole numbers|tokens"),
        ('["a", "b"]', "tokens"),
        ("[1.5, 2.5]", "whole numbers"),
        ("[[1, 2], [3]]", "tokens"),
        ("[[[1, 2]]]", "whole numbers"),
        ("[1]", "whole numbers"),
        ("[]", "whole numbers"),
        ("[1, 51]", "ids from 1 to 51, the vocabulary has 51"),
        ("[1, -1]", "ids from -1 to 1"),
        ("[1, 99999999999999999999999999]", "tokens"),
        ("[" * 100_000, "tokens"),
        ("3", "whole numbers"),
        ("null", "tokens"),
        ("[true, false]", "whole numbers"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else "",
)
def test_bad_tokens_are_refused(source: Path, content: str, says: str) -> None:
    place = source.parent
    (place / "tokens.json").write_text(content)
    command = ("verify", source, source, "--tokens", place / "tokens.json")
    refused(2, f"token.*({says})", *command, place=place)


def test_a_tokens_file_that_is_none_is_refused(source: Path, tmp_path: Path) -> None:
    command = ("verify", source, source, "--tokens")
    refused(2, "none.json: No such file", *command, tmp_path / "none.json", place=tmp_path)
    refused(2, "source: is not a regular file", *command, source, place=tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    refused(2, "tokens .*allow_pickle", *command, tmp_path / "objects.npy", place=tmp_path)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    refused(2, "tokens", *command, tmp_path / "cut.npy", place=tmp_path)


def test_good_tokens_are_accepted(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps([[1, 2, 3], [4, 5, 50]]))
    np.save(tmp_path / "tokens.npy", np.arange(8, dtype=np.uint16))
    for name in ("tokens.json", "tokens.npy"):
        outcome = accepted("verify", source, source, "--tokens", tmp_path / name)
        assert "function" in outcome.out


def test_learned_positions_bound_the_tokens(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "gpt")
    (tmp_path / "tokens.json").write_text(json.dumps([1] * 17))
    command = ("verify", source, source, "--tokens", tmp_path / "tokens.json")
    refused(2, "17 tokens in a row, the model has 16 positions", *command, place=tmp_path)


# --- comparing what cannot be compared


@pytest.mark.parametrize("other", ["tele", "gpt"])
def test_unrelated_checkpoints_differ_and_say_so(source: Path, tmp_path: Path, other: str) -> None:
    make_checkpoint(tmp_path / "other", other, seed=1)
    outcome = flmgrow("verify", source, tmp_path / "other")
    assert outcome.code == 1
    assert "DIFFERENT  function" in outcome.out
    assert "not derived again: it has no manifest" in outcome.out
