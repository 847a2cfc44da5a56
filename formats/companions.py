"""What says how a model is spoken to, and no weight does.

The files of its tokenizer, the settings of generation, and the ids that begin, end and fill texts:
without them a model is exact, and never stops. A Hugging Face folder has them beside its weights,
and the ids in ``config.json``. A Megatron checkpoint has no place for them: there they lie in the
folder ``tokenizer`` of the iteration's own (where Megatron-Bridge puts them, and Megatron-LM does
not look), the ids in ``token_ids.json``. They are data, and carried as they are.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.targets import FillBuffer, PlannedFile, Sums, TargetArray, TargetBytes
from flmgrow.storage.crc import Bytes
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.links import own_file
from flmgrow.storage.strict_json import read_object, refuse_pointer
from flmgrow.text import Found, Text

GENERATION = "generation_config.json"
TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|vocab\.json|vocab\.txt|"
    r"merges\.txt|tokenizer\.model(?:\.v[0-9]+)?|tekken\.json|spiece\.model|added_tokens\.json|"
    r"chat_template\.(?:json|jinja)"
)
COMPANION_KINDS = ("generation", "tokenizer")
"""What a Hugging Face folder's companions are called among what it carries."""

FOLDER = "tokenizer"
TOKEN_IDS = "token_ids.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_CARRIED_BYTES = 256 << 20
_MAX_IDS_BYTES = 1 << 20

Content = Path | bytes
"""A file to be copied, or what it holds."""

Ids = Mapping[str, object]
"""Special ids by their names in ``config.json``: a number, several of them, or None."""


@dataclass(frozen=True, eq=False)
class Companions:
    """Files by name, and special ``ids``; those that nobody knows are not in it."""

    files: Mapping[str, Content] = field(default_factory=dict)
    ids: Ids = field(default_factory=dict)

    @property
    def tokenizer(self) -> dict[str, Content]:
        """The files of the tokenizer."""
        return {name: data for name, data in self.files.items() if TOKENIZER.fullmatch(name)}

    @property
    def text(self) -> str:
        """The companions on one line; empty if there are none."""
        ids = [f"{name} {value}" for name, value in self.ids.items() if value is not None]
        return ", ".join([*self.files, *ids])


NO_COMPANIONS = Companions()


@dataclass(frozen=True, eq=False)
class CarriedFile:
    """A file that comes along as it is."""

    path: str
    file: ReadOnlyFile
    arrays: tuple[TargetArray, ...] = ()
    sums_of: ClassVar[tuple[str, ...]] = ()
    names_damage: ClassVar[bool] = True

    @property
    def total_size(self) -> int:
        """The size of the file in bytes."""
        return self.file.size

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Copy it."""
        for piece in self.file.chunks(0, self.file.size):
            write(piece)


def is_companion(name: str) -> bool:
    """Whether a file's name is one of a tokenizer, or of the settings of generation."""
    return name == GENERATION or TOKENIZER.fullmatch(name) is not None


def known_ids(fields: Mapping[str, object], where: str) -> dict[str, object]:
    """Return the special ids among ``fields``, found in file ``where``; None is an answer, too.

    Raises:
        BadCheckpointError: For one that is no id and no list of ids.
    """
    found = {name: fields[name] for name in IDS if name in fields}
    for name, value in found.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None and (isinstance(item, bool) or not isinstance(item, int)):
                raise BadCheckpointError(
                    Text("found ", Found(shown(value))), where=(where, name), wanted="an id"
                )
    return found


def ids_of(value: object) -> list[int]:
    """Return the ids that one of the special ids stands for."""
    found = value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, int)]


def companions_in(iteration: Path) -> Companions:
    """Return what lies in the folder of a Megatron checkpoint's iteration; nothing if there is no
    such place.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    folder = iteration / FOLDER
    if not folder.is_dir():
        return Companions()
    names = sorted(path.name for path in folder.iterdir() if is_companion(path.name))
    ids: dict[str, object] = {}
    if (folder / TOKEN_IDS).is_file():
        with ReadOnlyFile(own_file(folder, TOKEN_IDS)) as file:
            ids = known_ids(read_object(file, _MAX_IDS_BYTES), str(file.path))
    return Companions({name: folder / name for name in names}, ids)


def companion_files(companions: Companions, iteration: str) -> Iterator[PlannedFile]:
    """Yield the files to be written into the folder ``iteration`` of a Megatron checkpoint."""
    for name, content in companions.files.items():
        yield as_new_file(f"{iteration}/{FOLDER}/{name}", content)
    if any(value is not None for value in companions.ids.values()):
        data = json.dumps(dict(companions.ids), indent=1).encode() + b"\n"
        yield TargetBytes(f"{iteration}/{FOLDER}/{TOKEN_IDS}", data)


def as_new_file(path: str, content: Content) -> PlannedFile:
    """Return a file to be written under ``path`` with this content."""
    if isinstance(content, bytes):
        return TargetBytes(path, content)
    return CarriedFile(path, open_companion(content))


def open_companion(path: Path) -> ReadOnlyFile:
    """Open a file that is to be carried; the caller closes it.

    Raises:
        BadCheckpointError: For a link out of its folder, one that is too large, and a pointer to a
            file that was never downloaded.
    """
    with ExitStack() as undo:
        file = undo.enter_context(ReadOnlyFile(own_file(path.parent, path.name)))
        if file.size > MAX_CARRIED_BYTES:
            raise BadCheckpointError(
                Text("has ", Found(file.size), " bytes"),
                "such a file is no tokenizer; move it elsewhere",
                where=path,
                wanted=f"at most {MAX_CARRIED_BYTES}",
            )
        refuse_pointer(file.read(0, min(file.size, 64)), str(path))
        undo.pop_all()
    return file


def read_content(content: Content) -> bytes:
    """Return what a companion holds.

    Raises:
        BadCheckpointError: As ``open_companion`` does.
    """
    if isinstance(content, bytes):
        return content
    with open_companion(content) as file:
        return file.read(0, file.size)
