"""Nothing that a source names is run by whoever loads what was written of it."""

import argparse
import collections
import contextlib
import datetime
import enum
import importlib
import io
import pathlib
import pickle
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hostile_pickles import FORMS, MARKER, Form, plant, runs

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.file_writer import TorchFileWriter
from flmgrow.formats.torch_file.foreign_objects import check_content, left_out_objects
from flmgrow.formats.torch_file.trusted_names import python3_name, untrusted_names
from flmgrow.formats.torch_file.values import Global, Opaque


def content_of(file: TorchFile) -> dict[object, object]:
    assert isinstance(file.root, dict)
    return file.root


def written(root: object) -> bytes:
    output = io.BytesIO()
    writer = TorchFileWriter(root, output.write)
    writer.finish()
    return output.getvalue()


@pytest.mark.filterwarnings("ignore")  # of what the forms leave open
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_refused_or_left_out(form: Form, tmp_path: Path) -> None:
    """Refused when the file is read, or seen in the content, and never written."""
    file, canary = tmp_path / "file.pt", tmp_path / "canary"
    torch.save({"args": SimpleNamespace(lr=MARKER), "iteration": 3}, file)
    plant(file, form, canary)
    with contextlib.suppress(BadCheckpointError), TorchFile(file) as opened:
        assert untrusted_names(opened.root)
        with contextlib.suppress(BadCheckpointError):
            check_content(opened.root, "file")
            assert list(left_out_objects(content_of(opened))) == ["args.lr"]
        with pytest.raises(BadCheckpointError, match="not known to be harmless"):
            written(opened.root)
    assert not canary.exists()
    if form.runs:  # the form is what it is said to be
        assert runs(file, canary)


def test_the_forms_are_many_and_most_are_real() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS) >= 90
    assert sum(form.runs for form in FORMS) >= 50


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (("commands", "Popen"), ("subprocess", "Popen")),
        (("__builtin__", "xrange"), ("builtins", "range")),
        (("itertools", "imap"), ("builtins", "map")),
        (("urllib2", "Request"), ("urllib.request", "Request")),
        (("subprocess", "Popen"), ("subprocess", "Popen")),
        (("numpy", "dtype"), ("numpy", "dtype")),
    ],
)
def test_a_name_is_what_the_unpickler_takes_it_for(
    name: tuple[str, str], taken: tuple[str, str]
) -> None:
    assert python3_name(Global(*name)) == taken


def test_the_unpickler_agrees() -> None:
    """Every name of its tables that is there is what we say it is."""
    import _compat_pickle as tables

    agreed = 0
    for name in tables.NAME_MAPPING:
        module, own = python3_name(Global(*name))
        wanted = getattr(importlib.import_module(module), own, None)
        if wanted is not None:
            program = f"c{name[0]}\n{name[1]}\n.".encode()
            assert pickle.loads(b"\x80\x02" + program) is wanted
            agreed += 1
    assert agreed > 80


# --- what is carried


class Colour(enum.Enum):
    RED = 1


def carried() -> dict[str, object]:
    """What Megatron-LM keeps beside its weights, and what programs like it keep."""
    generator = torch.Generator().manual_seed(3)
    return {
        "args": argparse.Namespace(
            exit_signal=signal.SIGTERM, load=pathlib.PurePath("/a"), params_dtype=torch.bfloat16,
            nested=SimpleNamespace(a=1),
            device=torch.device("cpu"), number=np.float64(3), counted=collections.Counter("aab"),
            begun=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), odd={1, "x", None},
            lists=collections.defaultdict(list, a=[1]), span=range(3), kind=int, own=frozenset("a"),
        ),
        "rng_state": [
            {
                "random_rng_state": random.Random(1).getstate(),
                "np_rng_state": np.random.RandomState(1).get_state(),
                "torch_rng_state": generator.get_state(),
                "rng_tracker_states": {"model-parallel-rng": generator},
                "generator": np.random.default_rng(4),
                "object": random.Random(5),
            }
        ],
        "extra": io.BytesIO(b"scales"),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_programs_keep_is_carried(tmp_path: Path, protocol: int) -> None:
    torch.save(carried(), tmp_path / "file.pt", pickle_protocol=protocol)
    with TorchFile(tmp_path / "file.pt") as opened:
        assert untrusted_names(opened.root) == []
        check_content(opened.root, "file")
        output = io.BytesIO()
        writer = TorchFileWriter(opened.root, output.write)
        for storage in writer.storages:
            writer.write_storage(storage, [opened.read(storage, 0, storage.nbytes)])
        writer.finish()
    output.seek(0)
    found, wanted = torch.load(output, weights_only=False), carried()
    assert found["args"] == wanted["args"]
    assert found["extra"].getvalue() == b"scales"
    state, own = found["rng_state"][0], wanted["rng_state"][0]  # type: ignore[index]
    assert state["generator"].random() == own["generator"].random()
    assert state["object"].random() == own["object"].random()
    assert state["random_rng_state"] == own["random_rng_state"]
    assert torch.equal(state["torch_rng_state"], own["torch_rng_state"])


@pytest.mark.parametrize(
    "name",
    [
        "megatron.core.enums ModelType",
        "megatron.core.optimizer.optimizer_config OptimizerConfig",
        "megatron.core.rerun_state_machine RerunDiagnostic",
        "megatron.core.rerun_state_machine RerunMode",
        "megatron.core.rerun_state_machine RerunState",
        "megatron.core.transformer.enums AttnBackend",
        "megatron.core.transformer.enums CudaGraphScope",
        "megatron.core.transformer.enums InferenceCudaGraphScope",
        "megatron.model.enums PositionEmbeddingType",
        "transformer_engine.common.recipe DelayedScaling",
    ],
)
def test_what_megatron_itself_saves_is_trusted(name: str) -> None:
    """What megatron-core 0.16 calls safe, and what is in the arguments of older and newer ones."""
    module, _, own = name.partition(" ")
    assert untrusted_names([Opaque("reduce", Global(module, own), (1,))]) == []


def test_an_object_of_an_unknown_package_is_left_out_with_the_reason(tmp_path: Path) -> None:
    content = {"args": argparse.Namespace(a=Colour.RED, b=2), "own": [Colour.RED], "iteration": 3}
    torch.save(content, tmp_path / "file.pt")
    with TorchFile(tmp_path / "file.pt") as opened:
        check_content(opened.root, "file")
        reason = f"names {Colour.__module__}.Colour, which may run anything when it is loaded"
        assert left_out_objects(content_of(opened)) == {"args.a": reason, "own": reason}


def test_an_object_among_the_weights_cannot_be_left_out(tmp_path: Path) -> None:
    for key in ("model", "model1", "optimizer"):
        torch.save({key: {"x": Colour.RED}}, tmp_path / "file.pt")
        with (
            TorchFile(tmp_path / "file.pt") as opened,
            pytest.raises(BadCheckpointError, match=r"Colour, which is not known to be harmless"),
        ):
            check_content(opened.root, "file")
