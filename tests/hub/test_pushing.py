"""A push brings a whole model or nothing, goes on where it stopped, and tells nobody the token."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Outcome, accepted, check_lines
from hf_folders import make_folder
from hub_places import NAME, check_whole, hub_at, leaks, push
from hub_server import TOKEN, Fault, Hub, Repository
from pico import make_checkpoint

from flmgrow.hub.redaction import Redactor


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama")


def test_a_push_is_one_commit(hub: Hub, source: Path, tmp_path: Path) -> None:
    outcome = push(source, "--shard-size", "8K")
    assert outcome.code == 0, outcome.err
    repository = hub.repositories[NAME]
    assert not repository.private
    assert len(repository.commits) == 2
    assert hub.count("POST", "/commit/") == 1
    check_whole(hub, tmp_path / "out")
    commit = repository.branches["main"]
    assert outcome.out.splitlines()[-1] == f"{hub.endpoint}/{NAME}/commit/{commit}"
    assert not leaks(outcome, tmp_path)


def test_a_new_repository_is_private_if_asked(hub: Hub, source: Path) -> None:
    assert push(source, "--private").code == 0
    assert hub.repositories[NAME].private


def test_a_public_repository_stays_what_it_is(hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.repositories[NAME] = Repository()
    outcome = push(source, "--private")
    assert outcome.code == 5
    check_lines(outcome.err, "hf://org/model: exists and is public, wanted a private one")
    assert not (tmp_path / "out").exists()


def test_a_public_repository_that_appears_meanwhile_is_noticed(
    hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def overtaken(*_: object, **__: object) -> None:
        hub.repositories[NAME] = Repository()

    monkeypatch.setattr(HfApi, "create_repo", overtaken)
    outcome = push(source, "--private")
    assert outcome.code == 5
    assert hub.repositories[NAME].files().keys() == {".gitattributes"}


def test_a_branch_is_made(hub: Hub, source: Path, tmp_path: Path) -> None:
    assert push(source, "--revision", "run-2").code == 0
    check_whole(hub, tmp_path / "out", "run-2")
    assert hub.repositories[NAME].files().keys() == {".gitattributes"}
    assert f'("{NAME}", revision="run-2")' in (tmp_path / "out" / "README.md").read_text()


def test_json_is_one_document(hub: Hub, source: Path) -> None:
    outcome = push(source, "--json")
    data = json.loads(outcome.out)
    assert data["pushed"].endswith(hub.repositories[NAME].branches["main"])


def test_a_dry_run_says_nothing_to_the_hub(hub: Hub, source: Path) -> None:
    assert push(source, "--dry-run").code == 0
    assert not hub.requests


def test_pushing_again_changes_nothing(hub: Hub, source: Path) -> None:
    first = push(source)
    again = push(source)
    assert again.code == 0, again.err
    assert again.out.startswith("found")
    assert again.out.splitlines()[-1] == first.out.splitlines()[-1]
    assert len(hub.repositories[NAME].commits) == 2


def test_old_weights_go_with_the_same_commit(hub: Hub, source: Path, tmp_path: Path) -> None:
    stale = ("model-00001-of-00009.safetensors", "model.safetensors.index.json")
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit("main", {**dict.fromkeys(stale, b"old"), "notes.txt": b"kept"})
    assert push(source).code == 0
    files = hub.repositories[NAME].files()
    assert not set(stale) & files.keys()
    assert files["notes.txt"] == b"kept"
    assert len(hub.repositories[NAME].commits) == 3
    accepted("verify", tmp_path / "out", f"hf://{NAME}")


def test_the_receipt_comes_with_the_next_push(hub: Hub, source: Path, tmp_path: Path) -> None:
    assert push(source).code == 0
    accepted("verify", source, tmp_path / "out")
    assert b"Verification" not in hub.repositories[NAME].files()["README.md"]
    assert push(source).code == 0
    check_whole(hub, tmp_path / "out")
    assert b"| equal |" in hub.repositories[NAME].files()["README.md"]


@pytest.mark.parametrize("place", ["here", "there"])
def test_an_edited_card_is_left_alone(hub: Hub, source: Path, tmp_path: Path, place: str) -> None:
    assert push(source).code == 0
    page = tmp_path / "out" / "README.md"
    edited = page.read_bytes().replace(b"A language model", b"Our language model")
    if place == "here":
        page.write_bytes(edited)
    else:
        hub.repositories[NAME].commit("main", {"README.md": edited})
    accepted("verify", source, tmp_path / "out")  # which changes what the card would say
    assert push(source).code == 0
    assert hub.repositories[NAME].files()["README.md"] == edited
    receipt = json.loads(hub.repositories[NAME].files()["flmgrow.json"])["receipt"]
    assert receipt["equal"]


def test_a_damaged_folder_is_not_pushed(hub: Hub, source: Path, tmp_path: Path) -> None:
    assert push(source).code == 0
    before = dict(hub.repositories[NAME].branches)
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    outcome = push(source)
    assert outcome.code == 3
    check_lines(outcome.err, "model.safetensors: damaged: xxh3")
    assert hub.repositories[NAME].branches == before


def test_another_models_folder_is_not_pushed(hub: Hub, source: Path, tmp_path: Path) -> None:
    accepted("export", source, tmp_path / "out", "--dtype", "float32")
    outcome = push(source, "--dtype", "bfloat16")
    assert outcome.code == 5
    check_lines(outcome.err, "out: already exists")
    assert not hub.repositories


def test_only_what_belongs_to_the_model_is_pushed(hub: Hub, source: Path, tmp_path: Path) -> None:
    accepted("export", source, tmp_path / "out")
    (tmp_path / "out" / ".env").write_text("PASSWORD=1\n")
    (tmp_path / "out" / "notes.txt").write_text("mine\n")
    assert push(source).code == 0
    assert not {".env", "notes.txt"} & hub.repositories[NAME].files().keys()


def test_the_code_that_loads_flm_is_published_as_it_is_shipped(hub: Hub, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "flm", "flm", dtype="float32")
    accepted("export", source, tmp_path / "out")
    with (tmp_path / "out" / "modeling_flm.py").open("a") as file:
        file.write("raise SystemExit\n")
    outcome = push(source)
    assert outcome.code != 0
    assert "modeling_flm.py" in outcome.err
    assert not hub.repositories
    shutil.rmtree(tmp_path / "out")
    assert push(source).code == 0
    assert {"modeling_flm.py", "configuration_flm.py"} <= hub.repositories[NAME].files().keys()


def test_programs_are_not_published_unasked(hub: Hub, source: Path, tmp_path: Path) -> None:
    accepted("export", source, tmp_path / "out")
    (tmp_path / "out" / "modeling.py").write_text("raise SystemExit\n")
    outcome = push(source)
    assert outcome.code == 2
    check_lines(outcome.err, r"out: holds programs \(modeling.py\).*hint: .*--keep-code")
    assert not hub.repositories
    folder = make_folder(tmp_path / "hf")
    (folder / "modeling.py").write_text("raise SystemExit\n")
    accepted("export", folder, tmp_path / "out2", "--push-to", NAME, "--keep-code")
    assert "modeling.py" in hub.repositories[NAME].files()


# --- the whole program, as people run it


def test_the_program_speaks_to_the_endpoint_it_is_told(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    """HF_ENDPOINT and HF_HOME as the library reads them, at its import, with all it logs."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_VERBOSITY": "debug",
        "HF_DEBUG": "1",
    }

    def program(*words: object) -> Outcome:
        command = [sys.executable, "-m", "flmgrow", *map(str, words)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    pushed = program("export", source, tmp_path / "out", "--push-to", NAME)
    assert pushed.code == 0, pushed.err
    check_whole(hub, tmp_path / "out")
    grow = ("--ffn-hidden-size", "32", "--method", "zero")
    grown = program("expand", f"hf://{NAME}", tmp_path / "grown", *grow)
    assert grown.code == 0, grown.err
    hub.faults = [Fault("GET", "/api/models", 403, times=9)]
    refused = program("inspect", f"hf://{NAME}")
    assert refused.code == 6
    assert "error: hf://org/model: 403: the token does not allow this" in refused.err
    for outcome in (pushed, grown, refused):
        assert "Traceback" not in outcome.err
        assert not leaks(outcome, tmp_path)


def test_the_server_does_echo_the_token(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: were it not for the redaction, the token would be seen."""
    monkeypatch.setattr(Redactor, "__call__", lambda self, text: text)
    monkeypatch.setattr(
        "flmgrow.errors._CREDENTIALS", ()
    )  # nor for what every message goes through
    hub.faults = [Fault("GET", "/api/models", 403, times=9)]
    assert leaks(push(source), tmp_path) == ["err"]
