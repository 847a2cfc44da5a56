"""Making the hidden folder of an output one run's own: what others began in it, and whose it is.

``plan.json`` describes the whole run that began there. Another plan is refused, never mixed in; a
folder without a plan, or without a finished file, holds nothing of worth and is emptied.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from flmgrow.errors import OutputExistsError
from flmgrow.storage import durable, folders, journal
from flmgrow.storage.ending import BEAT
from flmgrow.storage.sign import Other
from flmgrow.text import Pass, Text

PLAN = "plan.json"
PROTOCOL = 2
SHOWN_DIFFERENCES = 5


def encoded_plan(plan: Mapping[str, object]) -> str:
    """Return what ``plan.json`` says of a run with this plan."""
    return json.dumps({"protocol": PROTOCOL, "plan": plan}, indent=1, sort_keys=True)


def adopt(temp: Path, wanted: str, restart: bool) -> None:
    """Make the hidden folder ``temp`` the run's that wants this plan: accept its own, refuse
    another's, or begin anew. All that earlier launches left is in one journal then.

    Raises:
        OutputExistsError: The output is there, or another run is writing it.
        StorageError: The file system failed.
    """
    place = temp / PLAN
    with durable.storage_errors(place, "reading"):
        found = place.read_bytes() if place.exists() else None
    wanted_by_nobody = found != wanted.encode() and not journal.has_lines(temp)
    if restart or found is None or wanted_by_nobody:
        # A crash in here does no harm: without a plan, nothing in the folder is trusted.
        folders.prune(temp, keep={temp / "lock", temp / "lease", *temp.glob("launch-*/*")})
        durable.sync_folder(temp)
        durable.write_small(place, wanted.encode())
        durable.sync_folder(temp.parent)
    elif found != wanted.encode():
        raise other_plan_error(found, wanted, temp)
    journal.merge(temp)


def other_plan_error(found: bytes, wanted: str, where: object) -> OutputExistsError:
    """Return the refusal of a run that ``where`` has the plan ``found``, and not the ``wanted``."""
    return OutputExistsError(
        "holds a half-done run of another plan: " + _differences(found, wanted),
        hint=Text(
            "give that run's command to finish it, choose another output folder, or ",
            Pass("restart", True),
            " to drop what it wrote",
        ),
        where=where,
    )


def refuse_living(path: Path, temp: Path, own: Collection[Path]) -> None:
    """Raise OutputExistsError if ranks of an earlier launch, whose rank 0 was lost, still write.

    ``own`` are the files in which this launch's ranks meet: who still has one of these ends once
    rank 0 is there.
    """
    signs = set(temp.glob("launch-*/rank.*")) - set(temp.glob("launch-*/rank.0")) - set(own)
    others = {sign: Other(sign) for sign in sorted(signs)}
    working = {
        sign: other
        for sign, other in others.items()
        if other.look().get("launch") and not other.content["ended"] and not other.died
    }
    if not all(other.fresh for other in working.values()):  # on other machines
        time.sleep(3 * BEAT)
    for sign, other in working.items():
        other.look()
        if other.fresh:
            rank, host = sign.name.replace(".", " "), other.content["host"].partition(" ")[0]
            raise OutputExistsError(
                f"another run ({rank} of an earlier launch, on {host}) is writing it",
                hint="wait for it to finish or stop it, or choose another output folder",
                where=path,
            )


def _differences(found: bytes, wanted: str) -> str:
    """Return the keys in which two plans differ, as ``options.tp: 4 there, 8 here``."""
    try:
        there = dict(_leaves(json.loads(found)))
    except ValueError:
        return "its plan.json is damaged"
    here = dict(_leaves(json.loads(wanted)))
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    shown = [
        f"{key.removeprefix('plan.')}: {there.get(key, 'none')} there, {here.get(key, 'none')} here"
        for key in keys[:SHOWN_DIFFERENCES]
    ]
    return ", ".join(shown) + (f", and {len(keys) - len(shown)} more" if keys[len(shown) :] else "")


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(below, f"{key}.{name}" if key else name)
    else:
        text = json.dumps(value)
        yield key, text if len(text) <= 60 else f"{text[:56]} ..."
