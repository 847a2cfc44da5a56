"""Growing keeps the function: the logits of the original arrays and of the grown files agree."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from growing import EXACT, checkpoint_logits, grow_checkpoint, tokens_for
from hypothesis import given
from pico import CONFIGS, DictWeights, even, logical_weights, make_checkpoint
from sampling import first
from strategies import Case, as_request, cases, examples
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.formats.megatron.legacy.reader import open_megatron
from flmgrow.model.config import ModelConfig
from flmgrow.model.forward import logits
from flmgrow.operators.choices import NewLayers
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.layout_request import LayoutRequest

SEED = 5


def original_logits(config: ModelConfig, tokens: Tensor) -> Tensor:
    return logits(config, DictWeights(logical_weights(config, SEED)), tokens)


def distance(config: ModelConfig, grown: Path) -> float:
    """The largest difference of logits, over old ids."""
    tokens = tokens_for(config.vocab)
    old, new = original_logits(config, tokens), checkpoint_logits(grown, tokens)
    assert old.abs().max() > 0.05
    return float((old - new[..., : config.vocab]).abs().max())


def everything(config: ModelConfig, hidden: int, methods: str, **changes: object) -> Target:
    """Every dimension grown at once, none by a whole factor."""
    groups = config.kv_groups + (1 if config.kv_groups == 1 else 2)
    target = Target(
        layers=config.layers + 4,
        hidden=hidden,
        ffn=config.ffn + 14,
        heads=groups * (config.queries_per_group + 1),
        kv_groups=groups,
        vocab=config.vocab + 10,
        methods=parse_methods(methods),
        depth_placement="interleave",
    )
    return replace(target, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", first(1, [20, 24]), ids=["ratio 5:3", "twice"])
@pytest.mark.parametrize("method", ["mask", "zero", "copy"])
@pytest.mark.parametrize("name", CONFIGS)
def test_all_dimensions_at_once_and_another_layout(
    name: str, method: str, hidden: int, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, pp=2), seed=SEED)
    case = Case(config, even(config), everything(config, hidden, method), even(config))
    if case.refused:
        with pytest.raises(UsageError, match="shared table"):
            grow_checkpoint(source, tmp_path / "b", case.target)
        assert not (tmp_path / "b").exists()
        return
    grow_checkpoint(source, tmp_path / "b", case.target, LayoutRequest(tp=2, pp=1))
    assert distance(config, tmp_path / "b") <= EXACT


@pytest.mark.slow
@examples(100)
@given(cases())
def test_any_growth_of_any_model_between_any_layouts(case: Case) -> None:
    with TemporaryDirectory() as folder:
        source = make_checkpoint(Path(folder, "a"), case.config, case.layout, seed=SEED)
        out = Path(folder, "b")
        if case.refused:
            with pytest.raises(UsageError):
                grow_checkpoint(source, out, case.target, as_request(case.new_layout))
            return
        plan = grow_checkpoint(source, out, case.target, as_request(case.new_layout))
        assert plan.growth.preserves
        with open_megatron(out) as grown:
            assert grown.config == plan.growth.new
            assert grown.layout == case.new_layout
        assert distance(case.config, out) <= EXACT


@pytest.mark.parametrize("file_format", ["megatron", "torch_dist", "huggingface"])
@pytest.mark.parametrize("method", ["zero", "copy"])
def test_a_new_epsilon_is_told_where_a_trainer_must_be(
    method: str, file_format: str, tmp_path: Path
) -> None:
    """Copied to twice the width, the mean of squares stays; filled with zeros, it does not."""
    source = make_checkpoint(tmp_path / "a", "llama", dtype="float32")
    target = Target(hidden=24, methods=parse_methods(method))
    plan = grow_checkpoint(source, tmp_path / "b", target, file_format=file_format)
    told = any("--norm-epsilon 0.005" in note for note in plan.growth.notes)
    assert told == (method == "zero" and file_format != "huggingface")


@pytest.mark.parametrize("method", ["zero", "copy"])
@pytest.mark.parametrize("name", ["flm", "qwen"])
def test_untying_opens_the_way_for_layernorm(name: str, method: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, pp=2), seed=SEED)
    grow_checkpoint(source, tmp_path / "b", everything(config, 20, method, untie=True))
    with open_megatron(tmp_path / "b") as grown:
        assert not grown.config.tied
    assert distance(config, tmp_path / "b") <= EXACT


@pytest.mark.parametrize("name", ["flm", "nemotron", "qwen"])
def test_growing_again_keeps_the_function(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    make_checkpoint(tmp_path / "0", config, even(config, pp=2), seed=SEED)
    steps = [
        (Target(hidden=24, layers=5, methods=parse_methods("copy")), LayoutRequest(pp=1)),
        (Target(ffn=28, kv_groups=8, methods=parse_methods("zero")), LayoutRequest(tp=2)),
        (
            Target(layers=6, ffn=30, methods=parse_methods("ffn=copy,depth=zero")),
            LayoutRequest(pp=2),
        ),
        (Target(layers=8, hidden=31, kv_groups=9), LayoutRequest(tp=1, pp=2, vpp=2)),
    ]
    for number, (target, request) in enumerate(steps):
        grow_checkpoint(tmp_path / str(number), tmp_path / str(number + 1), target, request)
        assert distance(config, tmp_path / str(number + 1)) <= EXACT


def test_float32_differs_by_its_rounding_alone(tmp_path: Path) -> None:
    config = CONFIGS["tele"]
    source = make_checkpoint(tmp_path / "a", config, seed=SEED, dtype="float32")
    tokens = tokens_for(config.vocab)
    old = checkpoint_logits(source, tokens)
    for method in ("mask", "zero", "copy"):
        grow_checkpoint(source, tmp_path / method, everything(config, 20, method))
        new = checkpoint_logits(tmp_path / method, tokens)[..., : config.vocab]
        assert (old - new).abs().max() <= 1e-6


def test_all_three_placements_of_layers_agree_on_the_function(tmp_path: Path) -> None:
    config = CONFIGS["flm"]
    source = make_checkpoint(tmp_path / "a", config, seed=SEED)
    for place in ("end", "interleave", "0,0,1,2,3,3"):
        for method in ("mask", "zero"):
            for fresh in NewLayers:
                out = tmp_path / f"{place} {method} {fresh}"
                methods = parse_methods(f"depth={method}")
                target = Target(layers=6, methods=methods, depth_placement=place, new_layers=fresh)
                grow_checkpoint(source, out, target)
                assert distance(config, out) <= EXACT
