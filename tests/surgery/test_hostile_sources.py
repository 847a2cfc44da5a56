"""What a hostile source names is in no output: stock torch, which runs what it loads, runs nothing.

Every form is tried for every command and place in the exhaustive tests; here each in one of them.
"""

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow
from damage import edit, rank_files
from hostile_pickles import FORMS, MARKER, OWN_PACKAGE, Form, OwnClass, plant, runs
from pico import make_checkpoint
from pico_dist import dist_state, save_dist

COMMANDS = {
    "reshard": ("reshard", "--tp", 2),
    "expand": ("expand", "--ffn-hidden-size", 48),
    "to torch_dist": ("reshard", "--format", "torch_dist"),
    "to torch_dist 0.19": ("reshard", "--format", "torch_dist", "--torch-dist-version", "0.19"),
}

Place = Callable[[dict[str, Any]], object]
EXTRA = "decoder.layers.0.mlp.linear_fc1._extra_state"


def tensor_with_attribute() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.own = MARKER  # type: ignore[attr-defined]
    return tensor


PLACES: dict[str, Place] = {
    "argument": lambda content: setattr(content["args"], "lr", MARKER),
    "list": lambda content: setattr(content["args"], "data_path", [1, {"x": MARKER}]),
    "entry": lambda content: content.update(own=MARKER),
    "random state": lambda content: content["rng_state"][0].update(np_rng_state=(MARKER,)),
    "schedule": lambda content: content["opt_param_scheduler"].update(decay=MARKER),
    "group": lambda content: content["optimizer"]["param_groups"][0].update(own=MARKER),
    "rerun state": lambda content: content.update(rerun_state_machine={"mode": MARKER}),
    "extra state": lambda content: content["model"].update({EXTRA: MARKER}),
    "attribute": lambda content: content["model"].update(own=tensor_with_attribute()),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("honest") / "source", "llama", optimizer=True)


def hostile(honest: Path, tmp_path: Path, form: Form, place: Place) -> tuple[Path, Path]:
    """A copy of the checkpoint with a form in one place, and its canary."""
    source, canary = tmp_path / "source", tmp_path / "canary"
    (file,) = rank_files(honest)
    own = source / file.relative_to(honest)
    own.parent.mkdir(parents=True)
    own.write_bytes(file.read_bytes())
    (source / "latest_checkpointed_iteration.txt").write_text("30")
    edit(own, place)
    plant(own, form, canary)
    return source, canary


def written_files(output: Path, tmp_path: Path) -> list[Path]:
    """Every file of ``torch.save`` in an output; those inside shards are taken out."""
    found = list(output.rglob("*.pt"))
    for shard in output.rglob("*.distcp"):
        data = shard.read_bytes()
        starts = [0]
        while (end := data.find(b"PK\5\6", starts[-1])) >= 0:
            starts.append(end + 22)
        for number, (start, stop) in enumerate(itertools.pairwise(starts)):
            part = tmp_path / f"{shard.name} {number}.pt"
            part.write_bytes(data[start:stop])
            found.append(part)
    return found


def check(honest: Path, tmp_path: Path, form: Form, place: str, command: str) -> None:
    source, canary = hostile(honest, tmp_path, form, PLACES[place])
    word, *options = COMMANDS[command]
    outcome = flmgrow(word, source, tmp_path / "out", *options)
    assert not canary.exists(), "reading it ran it"
    if outcome.code == 0:
        assert "left out: " in outcome.err, outcome
        files = written_files(tmp_path / "out", tmp_path)
        assert files
        assert not any(runs(file, canary, patience=0) for file in files)
        assert not any(pickle_names(file) for file in files)
    else:
        assert outcome.code == 3, outcome
        assert not (tmp_path / "out").exists()
        assert len([line for line in outcome.err.splitlines() if line.startswith("error: ")]) == 1


def pickle_names(file: Path) -> bool:
    """Whether the file still speaks of what was planted."""
    return OWN_PACKAGE.encode() in file.read_bytes()


CASES = [
    (form, place, command)
    for form, place, command in zip(
        FORMS, itertools.cycle(PLACES), itertools.cycle(COMMANDS), strict=False
    )
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("form", "place", "command"), CASES[::6], ids=lambda value: getattr(value, "name", value)
)
def test_an_output_runs_nothing(
    honest: Path, tmp_path: Path, form: Form, place: str, command: str
) -> None:
    check(honest, tmp_path, form, place, command)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_output_runs_nothing_wherever_the_form_is(
    honest: Path, tmp_path: Path, form: Form
) -> None:
    for number, (place, command) in enumerate(itertools.product(PLACES, COMMANDS)):
        own = tmp_path / str(number)
        own.mkdir()
        check(honest, own, form, place, command)


OWN = next(form for form in FORMS if form.name == f"{OWN_PACKAGE} OwnClass")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_object_of_a_users_package_is_left_out_and_told(
    honest: Path, tmp_path: Path, command: str
) -> None:
    word, *options = COMMANDS[command]
    for place, label in (("list", "args.data_path"), ("entry", "own")):
        own = tmp_path / place
        own.mkdir()
        source, canary = hostile(honest, own, OWN, PLACES[place])
        outcome = accepted(word, source, own / "out", *options)
        told = f"note: left out: {label}: names {OWN_PACKAGE}.OwnClass, which may run anything"
        assert told in outcome.err
        if command != "export":
            said = json.loads((own / "out" / "flmgrow.json").read_text(encoding="utf-8"))
            assert label in said["dropped"]
            assert said["dropped_why"][label].startswith(f"names {OWN_PACKAGE}.OwnClass")
        for file in written_files(own / "out", own):
            assert not runs(file, canary, patience=0)
    if command == "reshard":
        accepted("verify", source, own / "out")


# --- a distributed source


class Planted:
    """Written by torch itself."""

    def __init__(self, canary: Path, kind: type) -> None:
        self.canary = canary
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return self.kind, (str(self.canary),)


class Canary:
    """A class of an unknown package, which runs when it is loaded."""

    def __init__(self, path: str) -> None:
        Path(path).touch()


@pytest.mark.parametrize("in_shard", [False, True])
@pytest.mark.parametrize(
    "place", ["argument", "entry", "schedule", "extra state", "optimizer object"]
)
def test_a_distributed_source(tmp_path: Path, place: str, in_shard: bool) -> None:
    canary = tmp_path / "canary"
    legacy = make_checkpoint(tmp_path / "legacy", "llama", naming="fused")
    (file,) = rank_files(legacy)
    args = torch.load(file, weights_only=False)["args"]
    state, boxes = dist_state(legacy, 1)
    common: dict[str, Any] = {"opt_param_scheduler": {"num_steps": 3}}
    program = Planted(canary, Canary)
    if place == "argument":
        args.lr = program
    elif place == "entry":
        common["own"] = program
    elif place == "schedule":
        common["opt_param_scheduler"]["decay"] = program
    elif place == "extra state":
        state[next(name for name in state if "_extra_state/" in name)] = [program]
    else:
        common["optimizer"] = {"param_groups": [{"own": program}]}
    source = save_dist(tmp_path / "source", args, state, boxes, in_shard, **common)
    for command in ("reshard", "to torch_dist"):
        word, *options = COMMANDS[command]
        outcome = flmgrow(word, source, tmp_path / command, *options)
        assert not canary.exists()
        if place in ("argument", "entry", "schedule"):
            assert outcome.code == 0, outcome
            assert f"names {Canary.__module__}.Canary" in outcome.err
            for written in written_files(tmp_path / command, tmp_path):
                assert not runs(written, canary, patience=0)
        else:
            assert outcome.code == 3, outcome
            assert f"names {Canary.__module__}.Canary" in outcome.err


def test_loading_the_source_would_run_it(honest: Path, tmp_path: Path) -> None:
    """The control: the canary sings where nobody took care."""
    source, canary = hostile(honest, tmp_path, OWN, PLACES["argument"])
    (file,) = rank_files(source)
    assert runs(file, canary)
    assert OwnClass.__module__ in pickle.dumps(OwnClass).decode("latin-1")
