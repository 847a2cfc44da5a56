"""A stage file says all that decides on a stage: what it leaves out is documented, what it
misspells is refused, and lengths come out to the step.
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import flmgrow
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from repository import ROOT
from stage_runs import MODEL, stage_data, write_stage

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.storage.strict_yaml import MOST_BYTES
from flmgrow.trainer.stage.file import StageFile, layout_of, read_stage, stage_of
from flmgrow.trainer.stage.model import ModelSection
from flmgrow.trainer.stage.section import Section, amount

GUIDE = ROOT / "docs" / "guides" / "train.md"


def stage(**changes: Any) -> StageFile:
    return StageFile.model_validate(stage_data(Path("unread"), **changes))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("245.37B", 245_370_000_000),
        ("200K", 200_000),
        ("1.5m", 1_500_000),
        ("1T", 10**12),
        ("4,608,000", 4_608_000),
        ("17", 17),
        (" 2 K ", 2000),
    ],
)
def test_amounts_have_units(text: str, number: int) -> None:
    assert amount(text) == number


@pytest.mark.parametrize(
    "text", ["", "B", "12X", "1e400", "1e999999999", "1/0K", "-5K", "0x10", "ten", "1.5.2M"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        stage(training={"steps": None, "tokens": text})


@given(st.integers(1, 10**13), st.integers(1, 64), st.integers(1, 4096))
@example(245_370_000_000, 2304, 2048)
def test_tokens_become_the_nearest_number_of_steps(tokens: int, batch: int, length: int) -> None:
    found = stage(
        training={"steps": None, "tokens": tokens, "batch": batch, "micro_batch": 1},
        data={"sequence_length": length},
    )
    per_step = Fraction(batch * length)
    assert found.tokens_per_step == per_step
    assert found.steps >= 1
    assert abs(found.steps * per_step - tokens) <= per_step / 2 or found.steps == 1


@given(st.integers(0, 10**7), st.integers(1, 4096))
@example(4_608_000, 2304)
@example(230_400, 2160)
def test_warm_up_is_counted_in_samples(samples: int, batch: int) -> None:
    found = stage(
        training={"batch": batch, "micro_batch": 1}, learning_rate={"warmup_samples": samples}
    )
    assert abs(found.warmup_steps - Fraction(samples, batch)) <= Fraction(1, 2)


def test_the_floor_is_reached_where_the_stage_ends_if_nothing_is_said() -> None:
    found = stage(learning_rate={"decay_tokens": None})
    assert found.decay_steps == found.steps
    assert stage(learning_rate={"decay_tokens": 100 * 8 * 32}).decay_steps == 100


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"freeze": "old"}, "did you mean training.freeze? see"),
        ({"training": {"freeze": {"layer": "0-1"}}}, "did you mean training.freeze.layers? see"),
        ({"learning_rate": {"peek": 1e-3}}, "did you mean learning_rate.peak? see"),
        ({"training": {"warmup_samples": 8}}, "did you mean learning_rate.warmup_samples? see"),
        ({"optimiser": {"beta1": 0.9}}, "did you mean optimizer? see"),
        ({"training": {"grad_norm": 1}}, "see"),
        ({"style": "wsd", "folder": "a"}, "did you mean learning_rate.style or checkpoint.folder?"),
    ],
)
def test_a_hint_names_the_key_that_may_be_meant(changes: dict[str, Any], meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        stage_of(stage_data(Path("unread"), **changes), Path("stage.yaml"))
    assert str(caught.value.hint).startswith(meant)
    assert str(caught.value.hint).endswith("see docs/guides/train.md")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"learning_rate": {"peek": 1e-3}}, "learning_rate.peek: there is no such key"),
    "unknown section": ({"optimiser": {"beta1": 0.9}}, "optimiser: there is no such key"),
    "text for a number": (
        {"training": {"batch": "8"}},
        "training.batch: found '8', wanted a valid integer",
    ),
    "wsd without a decay": (
        {"learning_rate": {"style": "wsd"}},
        "learning_rate: .*style wsd and cooldown_tokens go together",
    ),
    "a decay without wsd": (
        {"learning_rate": {"cooldown_tokens": "1K"}},
        "learning_rate: .*style wsd and cooldown_tokens go together",
    ),
    "a decay that is too long": (
        {"learning_rate": {"style": "wsd", "cooldown_tokens": "1B"}},
        "learning_rate.cooldown_tokens is 1,000,000,000, of .* tokens until the floor",
    ),
    "half a layer": ({"model": {"num_layers": 2.5}}, "model.num_layers"),
    "yes for a number": ({"layout": {"tp": True}}, "layout.tp"),
    "zero ranks": ({"layout": {"pp": 0}}, "layout.pp: .* greater than or equal to 1"),
    "both lengths": ({"training": {"tokens": "1K"}}, "training: .*either steps or tokens"),
    "no length": ({"training": {"steps": None}}, "training: .*either steps or tokens"),
    "no corpus": ({"data": {"corpora": []}}, "data.corpora: .* at least 1 item"),
    "floor above the peak": (
        {"learning_rate": {"peak": 1e-3, "floor": 2e-3}},
        "learning_rate: the floor 0.002 is above the peak 0.001",
    ),
    "seed of 64 bits": ({"training": {"seed": 2**40}}, "training.seed: found 1099511627776"),
    "more than there is": (
        {"training": {"steps": None, "tokens": "1e30"}},
        r"training.tokens: found 1e\+30, wanted less",
    ),
    "decimal comma": ({"training": {"steps": None, "tokens": "1,5K"}}, "found '1,5K', wanted"),
    "half a step": ({"training": {"steps": "2.5"}}, "found '2.5', wanted an amount"),
    "a name for terminals": ({"name": "a\x1b[31mb"}, "name: found"),
    "decay without end": ({"optimizer": {"weight_decay": float("inf")}}, "weight_decay: .*finite"),
    "rotated twice": ({"model": {**MODEL, "rotary": {"percent": 2.0}}}, "percent: found 2.0"),
    "logits of nothing": (
        {"model": {**MODEL, "multipliers": {"output": 0.0}}},
        "multipliers.output: found 0.0, wanted greater than 0",
    ),
    "no weight": ({"data": {"corpora": [{"path": "x", "weight": 0}]}}, "corpora.0.weight"),
    "endless rate": ({"learning_rate": {"peak": float("inf")}}, "learning_rate.peak: .* finite"),
    "a rate of nothing": ({"learning_rate": {"peak": float("nan")}}, "learning_rate.peak"),
    "uneven batch": ({"training": {"micro_batch": 3}}, "batch of 8 does not divide"),
    "uneven replicas": ({"layout": {"dp": 3}}, "on 3 replicas"),
    "no text held out": (
        {"data": {"validation_share": 0.0}, "log": {"validation_every": 5}},
        "needs a data.validation_share above 0",
    ),
    "all text held out": ({"data": {"validation_share": 1.0}}, "validation_share"),
    "other precision": ({"training": {"precision": "float16"}}, "'float32' or 'bfloat16'"),
    "other format": ({"checkpoint": {"format": "zarr"}}, "'megatron' or 'torch_dist'"),
    "teacher alone": (
        {"data": {"teacher": {"files": ["x"], "share": 1.0}}},
        "data.teacher.share: .* less than 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    path = write_stage(tmp_path, stage_data(tmp_path, **changes))
    outcome = flmgrow("train", path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {path}: ")
    assert re.search(message, outcome.err)
    assert outcome.err.count("\n") == 2
    assert re.search(r"hint: (did you mean .*\? )?see docs/guides/train.md", outcome.err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the whole"),
        (b"- a\n- b\n", "the whole"),
        (b"a: [1, 2\n", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"#" * (MOST_BYTES + 1), "wanted at most"),
    ],
)
def test_files_that_hold_no_stage_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "stage.yaml"
    path.write_bytes(content)
    outcome = flmgrow("train", path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {path}: ")
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    outcome = flmgrow("train", tmp_path / name)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {tmp_path / name}: ")


def test_paths_are_seen_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = stage_data(Path("../texts"), checkpoint={"load": "start"})
    content["data"]["teacher"]["files"] = ["facts.jsonl"]
    write_stage(tmp_path / "one", content)
    monkeypatch.chdir(tmp_path)
    found = read_stage(Path("one/stage.yaml"))
    folder = tmp_path / "one"
    assert found.checkpoint.load == folder / "start"
    assert found.checkpoint.folder == folder / "checkpoints"
    assert found.log.metrics == folder / "metrics.jsonl"
    assert found.data.corpora[0].path == folder / "../texts/corpus"
    assert found.data.teacher is not None
    assert found.data.teacher.files == [folder / "facts.jsonl"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bytes", "bytes"),
        ("tiktoken:cl100k_base", "tiktoken:cl100k_base"),
        ("tiktoken:x/r.tiktoken", "tiktoken:{folder}/x/r.tiktoken"),
        ("r.tiktoken", "{folder}/r.tiktoken"),
        ("missing.json", "{folder}/missing.json"),
        ("/a/t.json", "/a/t.json"),
        ("~/t.json", "{home}/t.json"),
        ("x" * 300, "x" * 300),
    ],
)
def test_a_tokenizers_file_is_seen_from_the_stages(tmp_path: Path, name: str, meant: str) -> None:
    """Whatever lies there, or in the current folder."""
    (tmp_path / "bytes").write_text("a file that is called like a tokenizer")
    path = write_stage(tmp_path, stage_data(Path("texts"), data={"tokenizer": name}))
    wanted = meant.format(folder=tmp_path, home=Path.home())
    assert read_stage(path).data.tokenizer == wanted


def test_a_stage_is_called_like_its_file(tmp_path: Path) -> None:
    """So that no other stage beside it takes its checkpoints for its own."""
    content = stage_data(Path("unread"))
    del content["name"]
    for file, name in (("a.yaml", "a"), ("b.1.yaml", "b.1")):
        (tmp_path / file).write_text(yaml.safe_dump(content))
        assert read_stage(tmp_path / file).name == name
    (tmp_path / "c d.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="name: found 'c d'"):
        read_stage(tmp_path / "c d.yaml")


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(layers=2, hidden=12, ffn=20, kv_groups=2, queries_per_group=3, head_dim=4,
                    vocab=31, max_positions=16),
        ModelConfig(layers=3, hidden=8, ffn=8, kv_groups=1, queries_per_group=1, head_dim=8,
                    vocab=5, max_positions=4, norm="rmsnorm", norm_eps=3e-7, activation="swiglu",
                    linear_bias=False, qkv_bias=True, qk_norm=True, tied=False, positions="xpos",
                    multipliers=Multipliers(2.0, 3.5, 256, 0.5, True)),
    ],
)  # fmt: skip
def test_a_section_describes_a_model_in_full(config: ModelConfig) -> None:
    section = ModelSection.of(config)
    written = yaml.safe_load(yaml.safe_dump(section.model_dump(mode="json")))
    assert ModelSection.model_validate(written).config(vocab=1, length=1) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5, "hidden_size": 32}, "no multiple of num_attention_heads"),
        ({"num_query_groups": 3}, "no multiple of num_query_groups"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    section = ModelSection.model_validate(sizes | changes)
    with pytest.raises(UsageError, match=message):
        section.config(10, 10)


def keys_of(section: type[Section], prefix: str = "") -> dict[str, object]:
    """Every key of a section's sections, with its default (None where there is none to name)."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():
        inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
        parts = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
        if parts:
            found |= keys_of(parts[0], f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


def test_every_key_is_documented_with_its_default() -> None:
    rows = re.findall(
        r"^\| \**`([\w.]+)`\** \|([^|]*)\| [^|]+ \|$", GUIDE.read_text(encoding="utf-8"), re.M
    )
    keys = keys_of(StageFile)
    assert keys.pop("name") is PydanticUndefined
    assert [key for key, _ in rows] == list(keys)
    for key, told in rows:
        default = keys[key]
        if isinstance(default, bool):
            assert told.strip() == str(default).lower(), key
        elif isinstance(default, int | float):
            assert float(told) == default, key
        elif isinstance(default, str | Path):
            assert told.strip() == str(default), key


def test_the_guides_example_is_a_stage(tmp_path: Path) -> None:
    example_text, *_ = re.findall(
        r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    path = tmp_path / "stage.yaml"
    path.write_text(example_text, encoding="utf-8")
    assert read_stage(path).steps == 98


@pytest.mark.parametrize(
    ("length", "rotary"),
    [(32769, {}), (16385, {"xpos_scale_base": 256.0}), (65537, {"xpos_centre": 32768})],
)
def test_xpos_reaches_no_farther_than_numbers_do(length: int, rotary: dict[str, Any]) -> None:
    """The last length that is taken has finite scales, and not much is refused needlessly."""

    def laid_out(length: int) -> ModelConfig:
        model = {**MODEL, "num_attention_heads": 1, "rotary": rotary}
        found = stage(model=model, data={"sequence_length": length})
        config = found.model.config(257, length)
        layout_of(found, config, 384)
        return config

    config = laid_out(length)
    reach = (length - 1 - config.rotary.xpos_centre) / config.rotary.xpos_scale_base
    assert 1e34 < (2 / 7) ** -reach < float(np.finfo(np.float32).max)
    with pytest.raises(UsageError, match=f"sequence-length {length + 1}: xPos scales a position"):
        laid_out(length + 1)
