"""A push that fails leaves the branch as it is, tells no secret, and goes on where it stopped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import accepted, check_lines, flmgrow
from hub_places import NAME, check_whole, hub_at, leaks, manifest, push
from hub_server import TOKEN, Fault, Hub, Repository
from pico import make_checkpoint
from sampling import first


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_at(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "llama")


STEPS = (
    ("GET", "/api/models/org/model$"),
    ("POST", "/api/repos/create"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/lfs/"),
    ("POST", "/commit/"),
)
REFUSALS = [
    *((method, path, status) for method, path in STEPS for status in (403, 503)),
    *(("POST", "/commit/", status) for status in (401, 409, 412, 413, 418, 429, 500)),
    ("POST", "/api/repos/create", 401),
]


@pytest.mark.parametrize(("method", "path", "status"), first(7, REFUSALS))
def test_a_refusal_leaves_the_branch_and_tells_no_secret(
    hub: Hub, source: Path, tmp_path: Path, method: str, path: str, status: int
) -> None:
    if "create" not in path:
        hub.repositories[NAME] = Repository()
    before = {name: dict(found.branches) for name, found in hub.repositories.items()}
    hub.faults = [Fault(method, path, status, times=99)]
    outcome = push(source)
    assert {name: found.branches for name, found in hub.repositories.items()} == before
    assert outcome.code == 6, outcome
    check_lines(outcome.err, f"hf://org/model: {status}: ")
    assert "secret" not in outcome.err
    assert "sig=abc" not in outcome.err
    assert any(TOKEN in sent for sent in hub.tokens)
    assert not leaks(outcome, tmp_path)
    hub.faults = []
    assert push(source).code == 0
    check_whole(hub, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [*((method, path, 503) for method, path in STEPS), ("PUT", "/lfs/", 429)],
)
def test_a_passing_failure_passes(
    hub: Hub, source: Path, tmp_path: Path, method: str, path: str, status: int
) -> None:
    hub.faults = [Fault(method, path, status, {"Retry-After": "1"}, times=2)]
    outcome = push(source)
    assert outcome.code == 0, outcome.err
    check_whole(hub, tmp_path / "out")
    assert not leaks(outcome, tmp_path)


def test_an_interrupted_upload_goes_on(hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("PUT", "/lfs/", cut=True, times=99)]
    outcome = push(source, "--shard-size", "8K")
    assert outcome.code == 6
    check_lines(
        outcome.err, "the exchange with the Hub broke off.*hint: run the same command again"
    )
    assert hub.repositories[NAME].files().keys() == {".gitattributes"}
    hub.faults = [Fault("PUT", "/lfs/", times=2), Fault("PUT", "/lfs/", cut=True, times=99)]
    assert push(source, "--shard-size", "8K").code == 6
    sent = len(hub.objects)
    assert sent == 2
    hub.faults = []
    before = hub.count("PUT", "/lfs/")
    outcome = push(source, "--shard-size", "8K")
    assert outcome.code == 0, outcome.err
    check_whole(hub, tmp_path / "out")
    assert hub.count("PUT", "/lfs/") - before == len(hub.objects) - sent


def test_an_interruption_is_no_failure(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(source)
    assert hub.repositories[NAME].files().keys() == {".gitattributes"}
    assert push(source).code == 0
    assert hub.count("PUT", "/lfs/") == 1
    check_whole(hub, tmp_path / "out")


def test_a_commit_whose_answer_was_lost_is_found(hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", late=True)]
    outcome = push(source)
    assert outcome.code == 6
    check_lines(outcome.err, "the exchange with the Hub broke off")
    outcome = push(source)
    assert outcome.code == 0, outcome.err
    assert len(hub.repositories[NAME].commits) == 2
    check_whole(hub, tmp_path / "out")


def test_somebody_elses_commit_is_not_overwritten(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    hub.repositories[NAME] = Repository()
    upload = HfApi.preupload_lfs_files

    def overtaken(self: HfApi, *arguments: object, **more: object) -> None:
        upload(self, *arguments, **more)  # type: ignore[arg-type]
        hub.repositories[NAME].commit("main", {"config.json": b"theirs"})

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "preupload_lfs_files", overtaken)
        outcome = push(source)
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model: 412: somebody else's commit came first")
    assert hub.repositories[NAME].files()["config.json"] == b"theirs"


def test_other_content_on_the_hub_is_noticed(
    hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Repository.commit

    def damaged(self: Repository, branch: str, files: dict[str, bytes], *more: object) -> str:
        return commit(self, branch, {**files, "config.json": b"{}"}, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Repository, "commit", damaged)
    outcome = push(source)
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model: config.json: the Hub has other content")


def test_without_a_token_nothing_is_written(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    outcome = push(source)
    assert outcome.code == 6
    check_lines(outcome.err, "hf://org/model: there is no token.*hint: set HF_TOKEN")
    assert not (tmp_path / "out").exists()
    assert not hub.requests


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--push-to model", "--push-to model: wanted ORG/NAME"),
        ("--push-to org/na--me", "no name of a repository"),
        ("--push-to org/name --revision a..b", "no name of a revision"),
        ("--private", "--private: nothing is pushed.*--push-to"),
        ("--revision x", "--revision: nothing is pushed"),
        ("--license Apache/2", "--license Apache/2: is no identifier.*apache-2.0"),
        ("--evaluation none.json", "none.json: No such file"),
    ],
)
def test_a_bad_request_is_refused_before_anything(
    hub: Hub, source: Path, tmp_path: Path, options: str, says: str
) -> None:
    outcome = flmgrow("export", source, tmp_path / "out", *options.split())
    assert outcome.code == 2
    check_lines(outcome.err, says)
    assert not (tmp_path / "out").exists()
    assert not hub.requests


def test_the_manifest_names_no_hub_for_a_folder(source: Path, tmp_path: Path) -> None:
    accepted("export", source, tmp_path / "out")
    found = manifest(tmp_path / "out")["source"]
    assert isinstance(found, dict)
    assert found["hub"] is None
