"""Files and folders that are models to other programs, told apart, each with its own way on.

"No such folder" and "is this a checkpoint?" lead nowhere. What is here is recognised by names
alone; nothing is opened but ``adapter_config.json``, which names the model that it adapts.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object
from flmgrow.text import Found, Text

ADAPTER = "adapter_config.json"
_MOST_ADAPTER_BYTES = 1 << 20
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(?:@[\w./-]{1,200})?", re.ASCII)
_PAGE = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+).*", re.ASCII)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
_INSIDE = ("config.json", "latest_checkpointed_iteration.txt", ADAPTER)
_INDEX = "model.safetensors.index.json"
_MOST_LOOKED_AT = 1000

SAVE_AGAIN = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}', torch_dtype='auto').save_pretrained('{0}-safetensors')\""
)
"""Writes pickled weights as safetensors, in the dtype they have."""

MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as M; '
    "M.from_pretrained('{0}', torch_dtype='auto').merge_and_unload()"
    ".save_pretrained('{0}-merged')\""
)
"""Writes the model that an adapter makes of its base model."""


@dataclass(frozen=True)
class _Kind:
    """Something that is no checkpoint of ours: its files' names, what it is, and what to do."""

    names: re.Pattern[str]
    what: str
    hint: str
    wanted: str = ""


_CONVERT = (
    "give the same model's repository in Hugging Face's own layout (config.json and safetensors), "
)
_KINDS = (
    _Kind(
        re.compile(r".*\.gguf", re.IGNORECASE),
        "is a GGUF file, made for inference",
        "give the safetensors repository that it was made from: its page names it",
    ),
    _Kind(
        re.compile(r"model_index\.json"),
        "is a diffusion pipeline",
        "flmgrow grows decoders of text; give the folder of one",
    ),
    _Kind(
        re.compile(r"consolidated.*|params\.json|.*\.nemo|weights\.npz|.*\.onnx"),
        "is a model in its makers' own layout ({name})",
        f"{_CONVERT}or convert it with their tool",
    ),
    _Kind(
        re.compile(r"tf_model.*\.h5|.*\.ckpt\.index|flax_model.*\.msgpack|rust_model\.ot"),
        "holds weights of another framework ({name})",
        "load it with from_tf=True or from_flax=True in transformers 4, and save it again with "
        "save_pretrained",
    ),
    _Kind(
        re.compile(r"(?:.*\.safetensors|pytorch_model.*\.bin)(?:\.index\.json)?"),
        "has {name}, but no config.json",
        "copy config.json, too: flmgrow takes nothing about a model from its weights alone",
    ),
)
_PICKLES = _Kind(
    re.compile(r".*\.(?:bin|pth|pt)"),
    "its weights are pickles ({name})",
    f"save it again once, and copy the tokenizer files: {SAVE_AGAIN}",
    wanted="safetensors",
)


def _kind_of(names: Iterable[str], kinds: Sequence[_Kind] = _KINDS) -> tuple[_Kind, str] | None:
    listed = sorted(names)
    for kind in kinds:
        for name in listed:
            if kind.names.fullmatch(name):
                return kind, name
    return None


def _told(path: Path, found: tuple[_Kind, str]) -> BadCheckpointError:
    kind, name = found
    place = path if path.is_dir() else path.parent
    return BadCheckpointError(
        kind.what.format(name=name), kind.hint.format(place), where=path, wanted=kind.wanted
    )


def _adapter(folder: Path) -> BadCheckpointError:
    with ReadOnlyFile(folder / ADAPTER) as file:
        base = read_object(file, _MOST_ADAPTER_BYTES).get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return BadCheckpointError(
        Text("is ", Found(f"an adapter{of}")),
        f"merge it into its base model first: {MERGE.format(folder)}",
        where=folder,
        wanted="a whole model",
    )


def _missing(path: Path) -> BadCheckpointError:
    if page := _PAGE.fullmatch(str(path)):
        return BadCheckpointError("is an address", f"write hf://{page[1]}", where=path)
    if _REPOSITORY.fullmatch(str(path)):
        return BadCheckpointError(
            "no such folder", f"for the model of this name on the Hub: hf://{path}", where=path
        )
    return BadCheckpointError("no such folder", "give a checkpoint folder", where=path)


def _of_file(path: Path) -> BadCheckpointError:
    found = _kind_of([path.name])
    if found is not None and found[0] is _KINDS[0]:
        return _told(path, found)
    hint = f"give its folder: {path.parent}"
    return BadCheckpointError("is a file", hint, where=path, wanted="a folder")


def _models_inside(folder: Path, names: Iterable[str]) -> list[str]:
    inside = (folder / name for name in sorted(names))
    return [p.name for p in inside if any((p / marker).is_file() for marker in _INSIDE)]


def not_a_checkpoint(
    path: Path, is_checkpoint: Callable[[Path], bool]
) -> BadCheckpointError | None:
    """Return what ``path`` is, if it is something known that no checkpoint lies in, else None.

    ``is_checkpoint`` tells folders that are to be opened as such, whatever else is in them.
    """
    if not path.exists():
        return _missing(path)
    if not path.is_dir():
        return _of_file(path)
    if is_checkpoint(path):
        return None
    if (path / ADAPTER).is_file():
        return _adapter(path)
    names = [entry.name for _, entry in zip(range(_MOST_LOOKED_AT), path.iterdir(), strict=False)]
    if not names:
        return BadCheckpointError("is empty", "was a download or a copy broken off?", where=path)
    if (found := _kind_of(names)) is not None:
        return _told(path, found)
    if (cached := _CACHED.fullmatch(path.name)) is not None:
        return BadCheckpointError(
            "is a folder of the Hub's cache", f"write hf://{cached[1]}/{cached[2]}", where=path
        )
    if inside := _models_inside(path, names):
        return BadCheckpointError(
            f"holds checkpoints in folders of its own: {', '.join(inside)}",
            f"give one of them: {path / inside[-1]}",
            where=path,
        )
    return None


def without_weights(folder: Path) -> BadCheckpointError:
    """Return why a folder with a ``config.json`` has no weights that can be read."""
    names = [entry.name for entry in folder.iterdir()]
    if ADAPTER in names:
        return _adapter(folder)
    found = _kind_of(names, (*_KINDS[:-1], _PICKLES))
    if found is not None:
        return _told(folder, found)
    return BadCheckpointError(
        f"has config.json, but neither model.safetensors nor {_INDEX}",
        "copy or download the weights, too; is this a folder of a model?",
        where=folder,
    )
