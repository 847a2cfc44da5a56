"""A checkpoint as a model in memory: to look into, to compute with, to let it speak."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from flmgrow.given import SayingGiven
from flmgrow.opened import Source, opened, read_options

if TYPE_CHECKING:
    import torch

    from flmgrow.generation.session import Said, Told
    from flmgrow.model.module import Model

SourceOrPath = str | os.PathLike[str] | Source


def load_model(
    source: SourceOrPath,
    *,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
) -> "Model":
    """Return the model of a checkpoint as a module of torch's, weights in memory, masks applied.

    ``dtype`` is that of the weights if not given. ``model(tokens)`` are logits; see
    :class:`flmgrow.model.module.Model`.

    Raises:
        FlmgrowError: As :func:`flmgrow.open` does.
    """
    from flmgrow.surgery.weights import load_resident

    if isinstance(source, Source):
        return load_resident(source.checkpoint, dtype, device)
    with _open(source) as opened_source:
        return load_resident(opened_source.checkpoint, dtype, device)


def generate(
    source: SourceOrPath,
    prompts: Sequence[str],
    *,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    noted: Callable[[str], object] = lambda _: None,
    told: "Told | None" = None,
    **saying: Unpack[SayingGiven],
) -> "list[Said]":
    """Return what the model of a checkpoint goes on with, for each of the ``prompts``.

    The likeliest tokens, or with a ``temperature`` drawn ones. ``noted`` hears what is to be known
    of the tokenizer, ``told`` each text as it comes.

    Raises:
        FlmgrowError: As :func:`flmgrow.open` does.
        UsageError: For a prompt that the model cannot read, and where there is no tokenizer.
    """
    from flmgrow.generation.session import Session, request_of
    from flmgrow.generation.speech import speech_of

    if not isinstance(source, Source):
        with _open(source) as opened_source:
            return generate(
                opened_source, prompts, dtype=dtype, device=device, noted=noted, told=told, **saying
            )
    request = request_of(saying)
    speech, notes = speech_of(source.checkpoint, saying.get("tokenizer"))
    for text in notes:
        noted(text)
    model = load_model(source, dtype=dtype, device=device)
    said = Session(model, speech, tuple(saying.get("stop", ()))).say(prompts, request, told)
    return sorted(said, key=lambda each: each.number)


def _open(path: str | os.PathLike[str]) -> Source:
    return Source(opened(Path(path), None, read_options()))
