"""How a model that is written as a Hugging Face folder shall be spoken to: by which tokenizer, and
which ids begin, end and fill its texts.

What the source says comes first; then how it was trained, if flmgrow's trainer did it (the id that
ended its documents ends its texts); then the tokenizer that is given. What nobody says is null in
``config.json``: transformers would otherwise take the family's usual ids, whatever they are here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flmgrow.formats.checkpoint import Checkpoint, TargetModel
from flmgrow.formats.companions import (
    GENERATION,
    IDS,
    Content,
    ids_of,
    read_content,
)
from flmgrow.formats.history.manifest import training_of
from flmgrow.formats.tokenizer.identity import digest_of_tokenizer
from flmgrow.formats.tokenizer.settings import (
    END_NAMES,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    id_count,
    made_config,
    named_ids,
    parsed,
)
from flmgrow.formats.tokenizer.tiktoken_ranks import as_tokenizer
from flmgrow.storage.strict_json import Json
from flmgrow.text import Setting, Text

if TYPE_CHECKING:
    from flmgrow.formats.history.training_state import TokenizerFacts

_BYTES = 256
_WAY = Text("export ", Setting("tokenizer"), " FILE or FOLDER names one")


@dataclass(frozen=True, eq=False)
class Spoken:
    """Special ids for ``config.json``, files by name, and what is to be told of them."""

    ids: Mapping[str, object]
    files: Mapping[str, Content]
    notes: list[str] = field(default_factory=list)


def spoken(source: Checkpoint, target: TargetModel) -> Spoken:
    """Return how the folder ``target``, made of ``source``, shall be spoken to.

    Raises:
        BadCheckpointError: For a file that cannot be carried.
    """
    facts = _facts(source)
    files = dict(source.companions.files)
    given = target.huggingface.tokenizer
    if given:
        kept = {name: data for name, data in files.items() if name == GENERATION}
        files = {**given, **kept}
    elif facts is not None and facts.kind == "bytes" and not source.companions.tokenizer:
        files |= {TOKENIZER_JSON: byte_tokenizer(facts.eod)}
    tokenizer = parsed(read_content(files[TOKENIZER_JSON])) if TOKENIZER_JSON in files else {}
    ids = _ids(source, target, facts, files, tokenizer)
    notes = list(_notes_on_tokenizer(target, facts, files, tokenizer))
    if made := bool(given) or source.format != "huggingface":  # else it is as it was
        notes += _notes_on_what_lacks(source, facts, ids, files)
    if facts is not None and GENERATION in files:
        files[GENERATION] = _settled(files[GENERATION], ids)
    if made and tokenizer.get("model") and TOKENIZER_CONFIG not in files:
        files[TOKENIZER_CONFIG] = made_config(tokenizer, ids, target.config.max_positions)
    return Spoken(ids, files, notes)


def byte_tokenizer(end: int = _BYTES) -> bytes:
    """Return the ``tokenizer.json`` of a tokenizer whose tokens are the bytes of UTF-8.

    ``end`` is the id that ends documents: the one behind them, unless it is one of theirs.
    """
    ranks = {bytes([byte]): byte for byte in range(_BYTES)}
    return as_tokenizer(ranks, {END_NAMES[0]: end} if end >= _BYTES else {})


def _facts(source: Checkpoint) -> "TokenizerFacts | None":
    carried = None if source.format == "huggingface" else training_of(source)
    return None if carried is None else carried.tokenizer


def _ids(
    source: Checkpoint,
    target: TargetModel,
    facts: "TokenizerFacts | None",
    files: Mapping[str, Content],
    tokenizer: Json,
) -> dict[str, object]:
    """Return each special id, from the first that knows it."""
    config = parsed(read_content(files[TOKENIZER_CONFIG])) if TOKENIZER_CONFIG in files else {}
    settings = parsed(read_content(files[GENERATION])) if GENERATION in files else {}
    said = dict(source.companions.ids)
    if facts is not None and facts.eod not in ids_of(said.get("eos_token_id")):
        said["eos_token_id"] = facts.eod
    sources = (said, target.huggingface.token_ids, settings, named_ids(tokenizer, config))
    return {
        name: next((found[name] for found in sources if ids_of(found.get(name))), None)
        for name in IDS
    }


def _settled(settings: Content, ids: Mapping[str, object]) -> bytes:
    """Return settings of generation that end texts where ``ids`` do."""
    found = parsed(read_content(settings))
    changed = {name: ids[name] for name in IDS if ids[name] is not None and name in found}
    return json.dumps({**found, **changed}, indent=2).encode() + b"\n"


def _notes_on_what_lacks(
    source: Checkpoint,
    facts: "TokenizerFacts | None",
    ids: Mapping[str, object],
    files: Mapping[str, Content],
) -> Iterator[str]:
    if all(name == GENERATION for name in files):
        yield "no tokenizer goes along: " + _WAY
    before = ids_of(source.companions.ids.get("eos_token_id"))
    if facts is not None and before and facts.eod not in before:
        yield (
            f"eos_token_id is now {facts.eod}, which ended the documents it was trained with; "
            f"before that it was {' and '.join(map(str, before))}"
        )
    if ids["eos_token_id"] is None:
        yield (
            "nothing says which id ends a text: eos_token_id is null, and generation stops at its "
            "longest only"
        )


def _notes_on_tokenizer(
    target: TargetModel,
    facts: "TokenizerFacts | None",
    files: Mapping[str, Content],
    tokenizer: Json,
) -> Iterator[str]:
    count, rows = id_count(tokenizer), target.config.vocab
    if count > rows:
        yield Text(
            f"the tokenizer has {count} ids, the model has rows for {rows}: ids from {rows} on "
            "would fail; expand ",
            Setting("vocab_size", count),
            " adds rows",
        )
    if facts is None or facts.kind != "huggingface" or not tokenizer:
        return
    if digest_of_tokenizer(read_content(files[TOKENIZER_JSON])) != facts.sha256:
        yield (
            f"{TOKENIZER_JSON} is another than the model was trained with: its ids may stand for "
            "other texts"
        )
