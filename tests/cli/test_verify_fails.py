"""Each mistake a growth is known to suffer from is found by verify, and by the right check.

The mistakes are made in a correct result, and all sums made right again: no checksum can help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow
from damage import State, edit_all, edit_manifest, rank_files, with_arguments
from pico import CONFIGS, even, make_checkpoint, stored_weights

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Mistake:
    """A model, a growth of it, a change of the result, and the checks that must find it.

    ``arguments`` are what the model check looks at; ``function`` says whether the logits show it.
    """

    model: str
    options: str
    change: Callable[[State], object]
    arguments: bool = False
    elements: bool = True
    function: bool = True


def each(*endings: str) -> Callable[[State], list[str]]:
    return lambda content: [key for key in content["model"] if key.endswith(endings)]


def scaled(factor: float, *endings: str) -> Callable[[State], None]:
    def change(content: State) -> None:
        for key in each(*endings)(content):
            content["model"][key] *= factor

    return change


def both(*changes: Callable[[State], object]) -> Callable[[State], None]:
    def change(content: State) -> None:
        for each_change in changes:
            each_change(content)

    return change


NORMS = ("layernorm.weight",)
OLD_EPS = with_arguments(norm_epsilon=1e-2)


def not_centred(content: State) -> None:
    """Put the embedding back as it was before its mean over the channels was taken off."""
    table = content["model"]["embedding.word_embeddings.weight"]
    old = stored_weights(CONFIGS["gpt"])["embedding"]
    table[: len(old), : old.shape[1]] = old


def heads_at_the_end(content: State) -> None:
    """Put the new query heads behind all old ones, where other groups' keys answer them."""
    for key in each("linear_qkv.weight")(content):
        rows = content["model"][key].view(4, 3 + 2, 4, -1)
        queries, rest = rows[:, :3], rows[:, 3:]
        queries = torch.cat((queries[:, :2].flatten(0, 1), queries[:, 2])).view(4, 3, 4, -1)
        content["model"][key] = torch.cat((queries, rest), 1).flatten(0, 2)
    for key in each("linear_proj.weight")(content):
        columns = content["model"][key].view(-1, 4, 3, 4)
        columns = torch.cat((columns[:, :, :2].flatten(1, 2), columns[:, :, 2]), 1)
        content["model"][key] = columns.flatten(1)


def halves_swapped(content: State) -> None:
    for key in each("linear_fc1.weight")(content):
        gate, up = content["model"][key].chunk(2)
        content["model"][key] = torch.cat((up, gate))


def layers_swapped(content: State) -> None:
    model = content["model"]
    for key in [key for key in model if key.startswith("decoder.layers.1.")]:
        other = key.replace("layers.1.", "layers.2.")
        model[key], model[other] = model[other], model[key]


def one_bit(content: State) -> None:
    weight = content["model"]["decoder.layers.0.mlp.linear_fc2.weight"]
    weight.view(torch.int64)[2, 3] ^= 1


def nothing(_: State) -> None:
    pass


WIDER = "--hidden-size 20 --method zero"
RATIO = sqrt(20 / 12)

MISTAKES = {
    "padding with zeros alone": Mistake(
        "tele", WIDER, both(scaled(RATIO, *NORMS), OLD_EPS), arguments=True
    ),
    "gains not scaled": Mistake("tele", WIDER, scaled(RATIO, *NORMS)),
    "LayerNorm writers not centred": Mistake("gpt", WIDER, not_centred),
    "epsilon not scaled": Mistake("tele", WIDER, OLD_EPS, arguments=True, elements=False),
    "query heads behind the last group": Mistake(
        "llama", "--num-attention-heads 12 --method zero", heads_at_the_end
    ),
    "layers stacked": Mistake(
        "tele", "--num-layers 8 --method depth=stack", nothing, elements=False
    ),
    "output multiplier as before": Mistake(
        "flm",
        "--hidden-size 20",
        with_arguments(flmgrow_output_multiplier=1.7),
        arguments=True,
        elements=False,
    ),
    "gate and up swapped": Mistake("tele", "--ffn-hidden-size 24 --method zero", halves_swapped),
    "two layers swapped": Mistake("tele", "--ffn-hidden-size 24 --method zero", layers_swapped),
    "one bit of a mantissa": Mistake(
        "tele", "--ffn-hidden-size 24 --method zero", one_bit, function=False
    ),
}


WITHOUT_MASKS = [name for name in MISTAKES if name != "output multiplier as before"]


def of_size(model: str, size: float) -> dict[str, torch.Tensor]:
    """The weights of a model whose logits are ``size`` times what they are."""
    weights = dict(stored_weights(CONFIGS[model]))
    for name in {"final_norm.gain", "final_norm.bias"} & weights.keys():
        weights[name] = weights[name] * size
    return weights


def make(mistake: Mistake, tmp_path: Path, size: float = 1.0) -> tuple[Path, Path]:
    """Grow a checkpoint, see that verify is content, and make the mistake."""
    weights = of_size(mistake.model, size)
    source = make_checkpoint(tmp_path / "source", mistake.model, weights=weights)
    accepted("expand", source, tmp_path / "grown", *mistake.options.split())
    if mistake.change is not nothing:
        accepted("verify", source, tmp_path / "grown", "--no-receipt")
    edit_all(tmp_path / "grown", mistake.change)
    return source, tmp_path / "grown"


def verdicts(source: Path, grown: Path, *options: object) -> tuple[int, dict[str, str]]:
    """Return verify's exit code, and what it says of each check."""
    outcome = flmgrow("verify", source, grown, *options)
    assert outcome.err == ""
    lines = [line.split(None, 1) for line in outcome.out.splitlines()[:-1]]
    return outcome.code, {rest.split("  ")[0].strip(): word for word, rest in lines}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize(
    "size",
    [
        1.0,
        1e3,
        pytest.param(1e6, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
        pytest.param(1e-3, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_every_mistake_is_found_by_the_check_it_is_for(
    name: str, size: float, tmp_path: Path
) -> None:
    """However large logits are, which decides on how far apart rounding alone can bring them."""
    mistake = MISTAKES[name]
    source, grown = make(mistake, tmp_path, size)
    code, found = verdicts(source, grown)
    assert code == 1
    assert found["checksums of grown"] == "ok"
    assert found["model"] == ("DIFFERENT" if mistake.arguments else "ok")
    assert found["elements"] == ("DIFFERENT" if mistake.elements else "ok")
    assert found["function"] == ("DIFFERENT" if mistake.function else "ok")


@pytest.mark.parametrize("name", WITHOUT_MASKS)
def test_the_function_shows_a_mistake_without_any_manifest(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    source, grown = make(mistake, tmp_path)
    for manifest in grown.rglob("flmgrow.json"):
        manifest.unlink()
    code, found = verdicts(source, grown)
    assert code == (1 if mistake.function else 9)
    assert found["function"] == ("DIFFERENT" if mistake.function else "ok")
    assert found["elements"] == "unproven"


def grown_llama(tmp_path: Path, *options: object) -> tuple[Path, Path]:
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    source = make_checkpoint(tmp_path / "source", "llama", layout)
    accepted("expand", source, tmp_path / "grown", *options)
    return source, tmp_path / "grown"


def test_a_changed_file_is_found_by_its_checksum_though_torch_accepts_it(tmp_path: Path) -> None:
    source, grown = grown_llama(tmp_path, "--num-layers", 8)
    file = rank_files(grown)[2]
    torch.save(torch.load(file, weights_only=False), file)
    outcome = flmgrow("verify", source, grown)
    assert outcome.code == 1
    assert "DIFFERENT  checksums of grown" in outcome.out
    assert "mp_rank_01_000/model_optim_rng.pt" in outcome.out


@pytest.mark.parametrize("missing", ["file", "rank"])
def test_a_result_with_a_part_missing_is_refused(tmp_path: Path, missing: str) -> None:
    source, grown = grown_llama(tmp_path, "--num-layers", 8)
    file = rank_files(grown)[3]
    file.unlink()
    if missing == "rank":
        file.parent.rmdir()
    outcome = flmgrow("verify", source, grown)
    assert outcome.code == 3
    assert ("does not exist" if missing == "file" else "missing ranks") in outcome.err


def test_masks_that_open_early_are_found(tmp_path: Path) -> None:
    source, grown = grown_llama(tmp_path, "--ffn-hidden-size", 24)

    def open_early(manifest: dict[str, Any]) -> None:
        manifest["masks"]["ffn"]["value"] = 0.5

    edit_manifest(grown, open_early)
    code, found = verdicts(source, grown)
    assert (code, found["elements"], found["function"]) == (1, "ok", "DIFFERENT")


def test_the_receipt_says_what_was_found(tmp_path: Path) -> None:
    source, grown = grown_llama(tmp_path, "--ffn-hidden-size", 24, "--method", "zero")
    accepted("verify", source, grown)
    assert "equal to source" in accepted("inspect", grown).out
    edit_all(grown, scaled(1.5, *NORMS))
    assert verdicts(source, grown)[0] == 1
    assert "DIFFERENT from source" in accepted("inspect", grown).out


def test_another_source_is_not_taken_for_the_one_it_grew_from(tmp_path: Path) -> None:
    _, grown = grown_llama(tmp_path, "--ffn-hidden-size", 24, "--method", "zero")
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    code, found = verdicts(other, grown)
    assert (code, found["elements"], found["function"]) == (1, "unproven", "DIFFERENT")
