"""A receipt that cannot be written is told, costs nothing, and is written the next time."""

import json
from pathlib import Path

from commands import accepted, check_lines, flmgrow
from full_disk import full_disk
from pico import make_checkpoint


def test_a_full_disk_at_every_step_of_the_receipt(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    accepted("expand", source, tmp_path / "out", "--ffn-hidden-size", 32)
    manifest = tmp_path / "out" / "flmgrow.json"
    before, files = manifest.read_bytes(), sorted((tmp_path / "out").rglob("*"))
    room, met = 0, True
    while met:
        with full_disk(tmp_path, room) as disk:
            outcome = flmgrow("verify", source, tmp_path / "out")
        met, room = disk.met, room + 1
        assert sorted((tmp_path / "out").rglob("*")) == files
        if not met:
            break
        assert outcome.code == 4, outcome
        check_lines(outcome.err, "No space left on device.*free some space")
        whole = json.loads(manifest.read_bytes())
        assert manifest.read_bytes() == before or whole["receipt"]["equal"]
        manifest.write_bytes(before)
    assert outcome.code == 0
    assert room > 5
    assert json.loads(manifest.read_bytes())["receipt"]["equal"]
    accepted("verify", source, tmp_path / "out")
