"""Type checkers look for ``flmgrow.formats`` in ``flmgrow/formats``, and the folder is at the root.

They do not follow the mapping in ``pyproject.toml`` that the installer uses, and are silent about
what they did not find. So this script lays the sources out as they are imported, with links, in
``build/typecheck``; mypy is pointed there, and every module is read once, under its own name.
"""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "typecheck"


def main() -> None:
    """Make the tree anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shutil.rmtree(TREE, ignore_errors=True)
    for package, folder in sorted(project["tool"]["setuptools"]["package-dir"].items()):
        place = TREE / package.replace(".", "/")
        if "." in package:
            place.symlink_to(ROOT / folder)
            continue
        place.mkdir(parents=True)
        for entry in (ROOT / folder).iterdir():
            if entry.name != "__pycache__":
                (place / entry.name).symlink_to(entry)


if __name__ == "__main__":
    main()
