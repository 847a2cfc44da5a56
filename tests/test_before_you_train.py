"""The guide from a small model to a schedule is carried out as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stage_runs import environment, make_data

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "before-you-train.md"


def blocks(kind: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def first_words(line: str) -> str:
    """What a line is about, without its figures."""
    return re.split(r" {2,}|\|", line.strip("| "))[0].strip()


@pytest.mark.slow
def test_the_story_can_be_followed(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    for content in blocks("yaml"):
        (tmp_path / content.splitlines()[0].removeprefix("# ")).write_text(content)
    proxy = (tmp_path / "proxy.yaml").read_text()
    first = proxy.replace("hidden_size: 64", "hidden_size: 128")
    first = first.replace("num_attention_heads: 4", "num_attention_heads: 8")
    assert first != proxy
    (tmp_path / "first.yaml").write_text(first)
    commands = 0
    for block in blocks("console"):
        parts = block.split("$ flmgrow ")
        for part in parts[1:]:
            command, _, shown = part.partition("\n")
            words = [
                found
                for word in shlex.split(command)
                for found in (
                    sorted(str(each.relative_to(tmp_path)) for each in tmp_path.glob(word))
                    if "*" in word
                    else [word]
                )
            ]
            done = subprocess.run(
                [sys.executable, "-m", "flmgrow", *words], cwd=tmp_path, env=environment(),
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "Warning" not in done.stderr
            told = {first_words(line) for line in done.stdout.splitlines()}
            names = {first_words(line) for line in shown.splitlines()}
            # Figures and their order are of one machine; what is told of is not.
            words_shown = {name for name in names if name and not re.match(r"[\d.]", name)}
            words_shown -= {"..."} | {name for name in words_shown if ":" in name}
            assert words_shown <= told
            commands += 1
    assert commands == 6
