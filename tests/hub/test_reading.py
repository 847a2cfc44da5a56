"""A model on the Hub is a source like any other; a failure is one line without secrets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import accepted, check_lines, flmgrow
from hf_folders import make_folder
from hub_places import hub_at, leaks, manifest, upload
from hub_server import TOKEN, Fault, Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", shards=2)


GROW = ("--ffn-hidden-size", "16", "--method", "zero")


def test_a_model_on_the_hub_is_a_source(hub: Hub, folder: Path, tmp_path: Path) -> None:
    commit = upload(hub, folder)
    accepted("expand", "hf://org/model", tmp_path / "a", *GROW)
    accepted("expand", folder, tmp_path / "b", *GROW)
    found, wanted = manifest(tmp_path / "a"), manifest(tmp_path / "b")
    assert found["files"] == wanted["files"]
    source = found["source"]
    assert isinstance(source, dict)
    assert source["name"] == "org/model"
    assert source["hub"] == {"repository": "org/model", "commit": commit}
    accepted("verify", "hf://org/model", tmp_path / "a")
    assert "org/model (" in accepted("inspect", tmp_path / "a").out


@pytest.mark.parametrize(
    "command",
    [
        "inspect {}",
        "import {} OUT --tp 2",
        "export {} OUT",
        "reshard {} OUT",
        "verify {} {}",
        "expand {} OUT --dry-run",
    ],
)
def test_every_command_reads_from_the_hub(
    hub: Hub, folder: Path, tmp_path: Path, command: str
) -> None:
    upload(hub, folder)
    words = command.format("hf://org/model", "hf://org/model").split()
    outcome = accepted(*(str(tmp_path / "out") if word == "OUT" else word for word in words))
    assert not leaks(outcome, tmp_path)


def test_only_what_can_be_read_is_fetched(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "run.py").write_text("raise SystemExit\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("hello\n")
    more = {"sub/model.safetensors": b"x", "consolidated.safetensors": b"x"}
    commit = upload(hub, folder, more=more)
    accepted("inspect", "hf://org/model")
    (snapshot,) = (tmp_path / "cache").glob("models--org--model/snapshots/*")
    assert snapshot.name == commit
    assert sorted(path.name for path in snapshot.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_a_revision_is_what_it_says(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = upload(hub, folder)
    hub.repositories["org/model"].branches["v1.0"] = first
    hub.repositories["org/model"].commit("main", {"config.json": b"{}"})
    accepted("inspect", "hf://org/model@v1.0")
    accepted("inspect", f"hf://org/model@{first}")
    check_lines(flmgrow("inspect", "hf://org/model").err, "config.json")
    outcome = flmgrow("inspect", "hf://org/model@v2.0")
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model@v2.0: 404: no such repository or revision")


def test_the_cache_serves_offline(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    upload(hub, folder)
    upload(hub, folder, "org/other")
    accepted("inspect", "hf://org/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    accepted("inspect", "hf://org/model")
    outcome = flmgrow("inspect", "hf://org/other")
    assert len(hub.requests) == before
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/other: HF_HUB_OFFLINE is set, and the cache.*hint: unset")


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (400, {}, "400: the Hub refused the request.*is the name right"),
        (401, {}, "401: the Hub wants a valid token.*HF_TOKEN"),
        (403, {}, "403: the token does not allow this.*write access"),
        (404, {}, "404: no such repository or revision"),
        (409, {}, "409: somebody else's commit came first"),
        (418, {}, "418: the Hub refused the request"),
        (429, {"Retry-After": "1"}, "429: too many requests.*wait a while"),
        (429, {"Retry-After": "9999"}, "429: too many requests.*wait a while"),
        (500, {}, "500: the Hub failed.*same command again"),
        (503, {}, "503: the Hub failed.*same command again"),
    ],
)
def test_a_refusal_is_one_line_without_secrets(
    hub: Hub,
    folder: Path,
    tmp_path: Path,
    status: int,
    headers: dict[str, str],
    says: str,
) -> None:
    upload(hub, folder)
    hub.faults = [Fault("GET", "/api/models/org/model", status, headers, times=99)]
    outcome = flmgrow("inspect", "hf://org/model")
    assert outcome.code == 6, outcome
    assert outcome.out == ""
    check_lines(outcome.err, f"hf://org/model: {says}")
    assert "secret" not in outcome.err
    assert "sig=abc" not in outcome.err
    assert any(TOKEN in sent for sent in hub.tokens)
    assert not leaks(outcome, tmp_path)


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/resolve/"), ("GET", "/resolve/"), ("GET", "/tree/")]
)
def test_a_refused_file_is_one_line_without_secrets(
    hub: Hub, folder: Path, tmp_path: Path, method: str, path: str
) -> None:
    upload(hub, folder)
    hub.faults = [Fault(method, path, 403, times=99)]
    outcome = flmgrow("inspect", "hf://org/model")
    assert outcome.code == 6, outcome
    check_lines(outcome.err, "hf://org/model: 403: the token does not allow this")
    assert "secret" not in outcome.err
    assert not leaks(outcome, tmp_path)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_passes(hub: Hub, folder: Path, tmp_path: Path, status: int) -> None:
    upload(hub, folder)
    hub.faults = [Fault("GET", "/api/models", status, {"Retry-After": "2"}, times=2)]
    assert not leaks(accepted("inspect", "hf://org/model"), tmp_path)


def test_a_cut_download_is_resumed(hub: Hub, folder: Path) -> None:
    upload(hub, folder)
    hub.faults = [Fault("GET", "/resolve/.*-of-00002.safetensors", cut=True, times=2)]
    accepted("inspect", "hf://org/model")
    assert hub.count("GET", "/resolve/.*-of-00002.safetensors") == 4


def test_after_a_failed_download_the_same_command_goes_on(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    upload(hub, folder)
    hub.faults = [Fault("GET", "/resolve/.*-of-00002.safetensors", 500)]
    outcome = flmgrow("inspect", "hf://org/model")
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model: 500: the Hub failed")
    accepted("inspect", "hf://org/model")
    fetched = hub.count("GET", "/resolve/")
    accepted("inspect", "hf://org/model")
    assert hub.count("GET", "/resolve/") == fetched
    assert not leaks(outcome, tmp_path)


def test_nobody_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    outcome = flmgrow("inspect", "hf://org/model")
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model: the exchange with the Hub broke off: ConnectError")
    assert "secret" not in outcome.err


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    outcome = flmgrow("inspect", "hf://org/model")
    assert outcome.code == 2
    check_lines(outcome.err, r"huggingface_hub is not installed.*pip install 'flmgrow\[hub\]'")


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://a/b/c", "hf://../x", "hf://org/na me", "hf://org/x@", "hf://org/x@a..b",
     "hf://org/-x", "hf://org/x--y"],
)  # fmt: skip
def test_a_bad_name_is_refused(name: str, hub: Hub) -> None:
    outcome = flmgrow("inspect", name)
    assert outcome.code == 2
    check_lines(outcome.err, "is no name of a re.*hint: hf://ORG/NAME")
    assert not hub.requests


def test_the_hub_is_no_destination(hub: Hub, folder: Path) -> None:
    outcome = flmgrow("export", folder, "hf://org/model")
    assert outcome.code == 2
    check_lines(outcome.err, "hf://org/model: .*wanted a folder.*--push-to")


def test_verifying_leaves_the_cache_as_it_is(hub: Hub, folder: Path, tmp_path: Path) -> None:
    accepted("expand", folder, tmp_path / "grown", *GROW)
    upload(hub, tmp_path / "grown", "org/grown")
    accepted("inspect", "hf://org/grown")
    (cached,) = (tmp_path / "cache").glob("**/snapshots/*/flmgrow.json")
    before = cached.read_bytes()
    outcome = accepted("verify", folder, "hf://org/grown")
    assert outcome.out.endswith("equal\n")
    assert cached.read_bytes() == before
    assert cached.is_symlink()
