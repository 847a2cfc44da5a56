"""Who computes the answers: flmgrow itself, transformers, or vLLM.

transformers and vLLM read Hugging Face folders alone: for them the checkpoint is exported first,
into a cache that is named by what the checkpoint holds, so that it is exported once.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.companions import read_content
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.huggingface.writer import is_shipped
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, tokenizer_files
from flmgrow.generation.speech import spoken_as_exported
from flmgrow.model.checks import check_whole
from flmgrow.model.devices import check_dtype_name, device_named, dtype_named
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.requests import Files, plan_layout_of
from flmgrow.text import Pass, Setting, Text

if TYPE_CHECKING:
    from flmgrow.evaluation.peers import Peers
    from flmgrow.evaluation.tokens import HarnessTokenizer

Noted = Callable[[str], object]
"""Hears what is to be known of a model, in one line."""

_BACKENDS = ("native", "hf", "vllm")
_CACHE = "flmgrow/exported"


@dataclass(frozen=True)
class Computing:
    """How answers are computed.

    ``backend`` is native, hf or vllm. ``dtype`` is that of the weights if None; ``device`` a GPU if
    there is one. ``batch_size`` is how many texts are computed at once, None for as many as seems
    good. ``tokenizer`` (a folder, a file, or ``bytes``) stands in the place of the checkpoint's
    own. ``cache`` is where exports for other backends are kept.
    """

    backend: str = "native"
    dtype: str | None = None
    device: str | None = None
    batch_size: int | None = None
    tokenizer: Path | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.backend not in _BACKENDS:
            raise UsageError(
                Text(Setting("backend"), f" {self.backend}: unknown"),
                f"one of {', '.join(_BACKENDS)}",
            )
        check_dtype_name(self.dtype)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size)


def language_model(
    source: Checkpoint,
    how: Computing = Computing(),
    noted: Noted = lambda _: None,
    peers: "Peers | None" = None,
) -> Any:
    """Return the model of a checkpoint behind the harness's interface (``lm_eval.api.model.LM``).

    All of ``peers`` call this. Where the backend reads an export, one of them writes it.

    Raises:
        UsageError: Where the harness, the backend's package or a tokenizer is missing, and for a
            model that the backend cannot compute.
    """
    check_installed("lm_eval", "eval")
    from flmgrow.evaluation.peers import ALONE

    return {"native": _native, "hf": _hf, "vllm": _vllm}[how.backend](
        source, how, noted, peers or ALONE
    )


def identity_of(source: Checkpoint, how: Computing = Computing()) -> dict[str, str]:
    """Return what the answers of a checkpoint depend on, each as a word that tells it apart.

    Raises:
        UsageError: If it has no tokenizer.
    """
    spoken = spoken_as_exported(source, how.tokenizer)
    tokenizer = {name: read_content(content) for name, content in spoken.files.items()}
    masks = {name: mask.to_json() for name, mask in masks_of(source).items()}
    return {
        "checkpoint": source.contents.digest(),
        "model": _digest(repr(source.config), masks),
        "tokenizer": _digest(_digests(tokenizer)),
        "dtype": how.dtype or source.dtype,
        "backend": how.backend,
    }


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def check_installed(package: str, extra: str) -> None:
    """Raise UsageError unless a package is there; ``extra`` is what brings it."""
    if find_spec(package) is None:
        raise UsageError(
            f"evaluation needs the package {package}", f"pip install 'flmgrow[{extra}]'"
        )


def _native(source: Checkpoint, how: Computing, noted: Noted, _: "Peers") -> Any:
    from flmgrow.evaluation.native import NativeModel
    from flmgrow.evaluation.peers import local_rank
    from flmgrow.surgery.weights import load_resident

    tokens = _tokens(source, how, noted)
    device = device_named(how.device, local_rank())
    model = load_resident(source, dtype_named(how.dtype), device).eval()
    return NativeModel(model, tokens, how.batch_size)


def _tokens(source: Checkpoint, how: Computing, noted: Noted) -> "HarnessTokenizer":
    from flmgrow.evaluation.tokens import tokens_of

    tokens = tokens_of(source, how.tokenizer)
    for note in tokens.notes:
        noted(note)
    return tokens


def _hf(source: Checkpoint, how: Computing, noted: Noted, peers: "Peers") -> Any:
    from flmgrow.evaluation.by_transformers import TransformersModel
    from flmgrow.evaluation.peers import local_rank

    tokenizer = _tokens(source, how, noted).tokenizer
    if tokenizer.eos_token_id is None:  # the harness decodes it, and pads with it
        raise UsageError(
            Text(
                Setting("backend"), " hf needs an id that ends a text, and the tokenizer names none"
            ),
            Text(Pass("backend", "native"), ", or give a tokenizer that names one"),
            where=source.folder,
        )
    folder = peers.in_turn(lambda: exported(source, how, noted))
    tokenizer.name_or_path = str(folder)
    return TransformersModel(
        pretrained=str(folder),
        tokenizer=tokenizer,
        dtype=how.dtype or "auto",
        device=str(device_named(how.device, local_rank())),
        batch_size=how.batch_size or 8,
        max_length=source.config.max_positions,
        trust_remote_code=_is_ours(folder),
    )


def _is_ours(folder: Path) -> bool:
    """Whether an export has code, and all of it is what flmgrow ships, byte for byte.

    Code that came with the source is left out of an export, and nothing else is to be run.
    """
    code = list(folder.glob("*.py"))
    return bool(code) and all(is_shipped(file) for file in code)


def _vllm(source: Checkpoint, how: Computing, noted: Noted, peers: "Peers") -> Any:
    """Not tried anywhere yet: the harness's own class, given the exported folder."""
    if find_spec("vllm") is None:
        raise UsageError(
            Text(Setting("backend"), " vllm needs the package vllm"), "pip install vllm"
        )
    from lm_eval.models.vllm_causallms import VLLM

    folder = peers.in_turn(lambda: exported(source, how, noted))
    return VLLM(
        pretrained=str(folder),
        dtype=how.dtype or "auto",
        batch_size=how.batch_size or "auto",
        max_model_len=source.config.max_positions,
    )


def exported(source: Checkpoint, how: Computing, noted: Noted = lambda _: None) -> Path:
    """Return the Hugging Face folder of a checkpoint in the cache, written unless it is there.

    Raises:
        UsageError: For a model that no family of transformers can say; the message has the reasons.
    """
    given = NO_TOKENIZER if how.tokenizer is None else tokenizer_files(how.tokenizer, source.config)
    plan = plan_layout_of(
        source, LayoutRequest(), Files(dtype=how.dtype, format="huggingface", tokenizer=given)
    )
    folder = (how.cache or _usual_cache()) / _name(source, how, given.files)
    executor = Executor(plan, Execution())
    if executor.found(folder) is None:
        noted(f"{source.name} is exported to {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        executor.run(folder)
    return folder


def _usual_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE


def _name(source: Checkpoint, how: Computing, tokenizer: Mapping[str, bytes]) -> str:
    """Return what the export is called: by the content it is made of."""
    return _digest(source.contents.digest(), repr(source.config), how.dtype, _digests(tokenizer))
