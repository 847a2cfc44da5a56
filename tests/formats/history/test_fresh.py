"""What a growth made is known until the next one, whatever becomes of the files in between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted
from hypothesis import given
from hypothesis import strategies as st
from pico import make_checkpoint
from stage_runs import edit

import flmgrow
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.history.lags import lags_of
from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.axes import PADDING, AxisMap

FFN = ("--ffn-hidden-size", 24, "--method", "zero")


def fresh(folder: Path) -> dict[str, list[int]]:
    with open_checkpoint(folder) as opened:
        return {str(axis): indices.tolist() for axis, indices in fresh_of(opened).items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what grew out of it in its FFN."""
    place = tmp_path_factory.mktemp("place")
    make_checkpoint(place / "a", "llama")
    accepted("expand", place / "a", place / "b", *FFN)
    return place


def test_fresh_survives_other_layouts_and_formats_until_the_next_growth(
    place: Path, tmp_path: Path
) -> None:
    assert fresh(place / "a") == {}
    grown = fresh(place / "b")
    assert list(grown) == ["ffn"]
    assert grown["ffn"][-1] == 23
    tp, dist, hf, back = (tmp_path / name for name in ("tp", "dist", "hf", "back"))
    accepted("reshard", place / "b", tp, "--tp", 2)
    accepted("reshard", tp, dist, "--tp", 1, "--format", "torch_dist")
    accepted("export", dist, hf)
    accepted("import", hf, back)
    assert [fresh(each) for each in (tp, dist, hf, back)] == [grown] * 4
    accepted("expand", back, tmp_path / "deep", "--num-layers", 6, "--method", "zero")
    assert list(fresh(tmp_path / "deep")) == ["layer"]
    assert len(fresh(tmp_path / "deep")["layer"]) == 2


def test_inspect_tells_what_is_fresh(place: Path) -> None:
    assert flmgrow.inspect(place / "b").to_json()["fresh"]["ffn"][-1][-1] == 24
    assert flmgrow.inspect(place / "a").to_json()["fresh"] == {}
    assert " of 24 ffn, made by the last growth" in accepted("inspect", place / "b").out


def test_a_manifest_of_an_earlier_version_says_it_by_its_growth(
    place: Path, tmp_path: Path
) -> None:
    accepted("expand", place / "a", tmp_path / "b", *FFN)
    for manifest in (tmp_path / "b").rglob(MANIFEST):
        edit(manifest, fresh=None)
    assert fresh(tmp_path / "b") == fresh(place / "b")


@pytest.mark.parametrize("spans", [{"ffn": [[4, 2]]}, {"wings": [[0, 2]]}, {"ffn": [[-1, 2]]}])
def test_what_is_no_index_is_refused(place: Path, tmp_path: Path, spans: dict[str, Any]) -> None:
    accepted("expand", place / "a", tmp_path / "b", *FFN)
    for manifest in (tmp_path / "b").rglob(MANIFEST):
        edit(manifest, fresh=spans)
    with pytest.raises(flmgrow.BadCheckpointError), open_checkpoint(tmp_path / "b") as opened:
        fresh_of(opened)


@given(st.lists(st.integers(PADDING, 5), min_size=1, max_size=12))
def test_fresh_is_what_no_old_index_stands_behind_for_the_first_time(sources: list[int]) -> None:
    wanted = [
        place
        for place, old in enumerate(sources)
        if old == -1 or (old >= 0 and old in sources[:place])
    ]
    assert AxisMap(6, np.array(sources)).fresh.tolist() == wanted


LAG = {"tensor": "up", "layers": [[0, 2]], "steps": None}


@pytest.mark.parametrize(
    "lags",
    [
        [{**LAG, "layers": [[2, 0]]}],
        [{**LAG, "layers": [[0, 1 << 40]]}],
        [{**LAG, "steps": -1}],
        [{"tensor": "up"}],
        [LAG] * 1000,
    ],
)
def test_what_is_no_lag_is_refused(place: Path, tmp_path: Path, lags: list[Any]) -> None:
    accepted("expand", place / "a", tmp_path / "b", *FFN)
    for manifest in (tmp_path / "b").rglob(MANIFEST):
        edit(manifest, lags=lags)
    with pytest.raises(flmgrow.BadCheckpointError), open_checkpoint(tmp_path / "b") as opened:
        lags_of(opened)
