"""What a checkpoint says: as transformers says it, in any format, and as the model it grew from."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from commands import accepted, refused
from sampling import first
from speakers import make_speaker
from transformers_models import CONFIGS, load_model

from flmgrow.cli.app import run
from flmgrow.formats.opening import open_checkpoint
from flmgrow.generation.speech import Stream, speech_of

PROMPT = "the other"
FAMILIES = [name for name in CONFIGS if "llama 3" not in name]


def said(source: object, *options: object) -> list[dict[str, object]]:
    outcome = accepted("generate", source, "--json", *options)
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaker(tmp_path_factory.mktemp("speaker") / "hf")


@pytest.mark.parametrize("name", first(3, FAMILIES))
def test_greedy_text_is_transformers(name: str, tmp_path: Path) -> None:
    folder = make_speaker(tmp_path / "hf", name)
    (found,) = said(folder, "--prompt", PROMPT, "--max-new-tokens", 20, "--dtype", "float64")
    model, _ = load_model(folder, torch.float64)
    with open_checkpoint(folder) as source:
        speech, long = speech_of(source)[0], source.config.rotary.longrope
    ids = speech.encode(PROMPT)
    wanted = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    tokens = wanted[0, len(ids) :].tolist()
    room = 20 if long is None else long.context - len(ids)  # behind it a text begins anew
    end = next((n for n, token in enumerate(tokens[:room]) if token in speech.ends), None)
    assert found["tokens"] == tokens[: room if end is None else end]
    if end is None:
        assert found["ended"] == ("context" if room < 20 else "length")
    else:
        assert found["ended"] == "end"


def test_all_formats_and_layouts_say_the_same(speaker: Path, tmp_path: Path) -> None:
    how = ("--prompt", PROMPT, "--prompt", "th", "--temperature", 0.9, "--max-new-tokens", 12)
    wanted = said(speaker, *how)
    accepted("import", speaker, tmp_path / "legacy", "--tp", 2, "--pp", 2)
    accepted("import", speaker, tmp_path / "dist", "--tp", 2, "--format", "torch_dist")
    for form in ("legacy", "dist"):
        assert said(tmp_path / form, *how) == wanted


def test_what_grew_says_what_it_said(speaker: Path, tmp_path: Path) -> None:
    """With masks at 0, which hold the new units back; open, it is another model."""
    how = ("--prompt", PROMPT, "--max-new-tokens", 12)
    grow = ("--hidden-size", 48, "--ffn-hidden-size", 72, "--num-layers", 6)
    accepted("import", speaker, tmp_path / "small")
    accepted("expand", tmp_path / "small", tmp_path / "grown", *grow, "--method", "mask")
    assert said(tmp_path / "grown", *how) == said(speaker, *how)
    accepted("bake", tmp_path / "grown", tmp_path / "open", "--value", 1, "--no-optimizer")
    assert said(tmp_path / "open", *how) != said(speaker, *how)


def test_texts_end_at_the_models_end(tmp_path: Path) -> None:
    plain = make_speaker(tmp_path / "plain")
    (whole,) = said(plain, "--prompt", PROMPT, "--max-new-tokens", 12)
    tokens = whole["tokens"]
    assert isinstance(tokens, list)
    end = tokens[5]
    ended = make_speaker(tmp_path / "ended", eos_token_id=[259, end])
    (found,) = said(ended, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert found["tokens"] == tokens[: tokens.index(end)]
    assert found["ended"] == "end"


def test_texts_end_before_a_stop(speaker: Path) -> None:
    (whole,) = said(speaker, "--prompt", PROMPT, "--max-new-tokens", 12)
    text = str(whole["text"])
    stop = text[4:6]
    (found,) = said(speaker, "--prompt", PROMPT, "--max-new-tokens", 12, "--stop", stop)
    assert found["text"] == text[: text.index(stop)]
    assert found["ended"] == "stop"


def test_texts_are_printed_with_their_prompts(speaker: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the"}\n\n{"prompt": "other", "id": 3}\n')
    found = said(speaker, "--prompts", prompts, "--prompt", "th", "--max-new-tokens", 5)
    assert [each["prompt"] for each in found] == ["th", "the", "other"]
    outcome = accepted("generate", speaker, "--prompts", prompts, "--prompt", "th",
                       "--max-new-tokens", 5)  # fmt: skip
    wanted = "\n\n".join(f"{each['prompt']}{each['text']}" for each in found)
    assert outcome.out == wanted + "\n"


def test_standard_input_is_a_prompt(speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the"))
    assert said(speaker, "--max-new-tokens", 5) == said(
        speaker, "--prompt", "the", "--max-new-tokens", 5
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_terminal_is_not_steered(speaker: Path, prompts: int) -> None:
    """What would clear its screen, or turn what is written back, is shown; a pipe gets it as is."""
    steering = "the\x1b[2J\r\x9b31m\n\tother \u3000"
    words = ["generate", str(speaker), "--max-new-tokens", "3", *["--prompt", steering] * prompts]
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        assert run(words) == 0
    assert "the\\x1b[2J\\r\\x9b31m\n\tother \u3000" in terminal.getvalue()
    assert not {*"\x1b\r\x9b"} & {*terminal.getvalue()}
    assert steering in accepted(*words).out


def test_a_stream_tells_the_whole_text(speaker: Path) -> None:
    """Characters of several bytes are told when they are whole."""
    with open_checkpoint(speaker) as source:
        speech, _ = speech_of(source)
    text = "the é 模 \N{GRINNING FACE} end"
    prompt, tokens = speech.encode("the"), speech.encode(text)
    stream = Stream(speech, prompt)
    pieces = [stream.more(tokens[: end + 1]) for end in range(len(tokens))]
    pieces.append(stream.more(tokens, last=True))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 5


def test_a_seed_is_a_text(speaker: Path) -> None:
    how = ("--prompt", PROMPT, "--temperature", 1.5, "--max-new-tokens", 12)
    assert said(speaker, *how, "--seed", 1) == said(speaker, *how, "--seed", 1)
    assert said(speaker, *how, "--seed", 1) != said(speaker, *how, "--seed", 2)


REFUSED: dict[str, tuple[tuple[object, ...], int, str]] = {
    "no prompt": ((), 2, "no prompt.*--prompt TEXT"),
    "too long": (("--prompt", "x" * 65), 2, "prompt 1 has 65 tokens, the model reads 64"),
    "empty": (("--prompt", "the", "--prompt", ""), 2, "prompt 2 has no tokens"),
    "another tokenizer": (
        ("--prompt", "模", "--tokenizer", "bytes", "--true-vocab-size", 200),
        2, "makes token 230, the model has 200",
    ),
    "no file": (("--prompts", "missing.jsonl"), 2, "missing.jsonl: No such file"),
    "dtype": (("--prompt", "a", "--dtype", "int8"), 2, "--dtype int8: unknown"),
    "device": (("--prompt", "a", "--device", "abacus"), 2, "--device abacus: .*cpu works"),
    "temperature": (("--prompt", "a", "--temperature", "-1"), 2, "temperature is -1"),
    "top p": (("--prompt", "a", "--top-p", "2"), 2, "--top-p is 2, wanted at most 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_one_line(
    case: str, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    options, code, says = REFUSED[case]
    refused(code, says, "generate", speaker, *options, place=tmp_path)


def test_without_a_tokenizer_it_is_told(speaker: Path, tmp_path: Path) -> None:
    (speaker / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    try:
        refused(2, "has no tokenizer.json.*--tokenizer", "generate", speaker, "--prompt", "a",
                place=tmp_path)  # fmt: skip
        given = said(speaker, "--prompt", "the", "--tokenizer", tmp_path / "tokenizer.json")
        assert given[0]["prompt_tokens"] == 1
    finally:
        (tmp_path / "tokenizer.json").rename(speaker / "tokenizer.json")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    refused(2, "lines.jsonl:2: has no text under the key 'prompt'", "generate", speaker,
            "--prompts", lines, place=tmp_path)  # fmt: skip
