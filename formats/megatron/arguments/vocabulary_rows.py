"""The arguments that say how many ids a vocabulary has and how many rows its table, and what they
come to together.
"""

from typing import Any

from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.layout.placements import VOCAB_MULTIPLE, padded_size
from flmgrow.formats.megatron.arguments.layout_rows import TP
from flmgrow.formats.megatron.arguments.row import (
    Arguments,
    ModelArgument,
    always,
    as_it_is,
    integer,
    optional_integer,
)
from flmgrow.model.config import ModelConfig
from flmgrow.text import Setting, Text

_ADDS_AN_ID = "NullTokenizer"


def added_ids(arguments: Arguments) -> int:
    """Return how many ids the tokenizer has beyond ``vocab_size``."""
    return int(TOKENIZER_TYPE.get(arguments) == _ADDS_AN_ID)


def true_vocabulary(reader: ArgumentReader, padded: int) -> int:
    """Return the number of real ids in a table of ``padded`` rows, as far as the arguments tell.

    Megatron-LM's NullTokenizer adds an end-of-document id to ``vocab_size`` in some versions;
    counting one row too many is harmless, one too few is not. So where ``vocab_size``, padded as
    Megatron-LM does it, is not the size of the table, all rows are taken as real: the argument is
    of another tokenizer, or the table's size was given.
    """
    if own := TRUE_VOCAB.read(reader):
        return min(own, padded)
    given = VOCAB.read(reader)
    if not given:
        return padded
    size = given + added_ids(reader.arguments)
    multiple, tp = MULTIPLE.read(reader), TP.read(reader)
    by_rule = {padded_size(one, multiple, tp) for one in (given, size)}
    return min(size, padded) if padded in by_rule else padded


def vocabulary_notes(arguments: Arguments, vocab: int) -> tuple[str, ...]:
    """Return what to tell of a model of ``vocab`` ids if ``vocab_size`` says fewer, or nothing."""
    given = VOCAB.get(arguments)
    told = TRUE_VOCAB.get(arguments) is not None
    if told or not isinstance(given, int) or vocab <= given + added_ids(arguments):
        return ()
    told_by = Setting("true_vocab_size")
    doubt = f"args.{VOCAB.name} is {given}, which does not explain a table of {vocab} rows"
    return (Text(doubt, ": all of them are taken as real (", told_by, " says otherwise)"),)


def _grows(arguments: Arguments, config: ModelConfig) -> bool:
    """Whether ``config`` has more ids than the model that ``arguments`` describe; if not, their
    ``vocab_size`` is the tokenizer's, whatever it says of the table.
    """
    if VOCAB.get(arguments) is None:
        return False
    reader = ArgumentReader(arguments, "args")
    padded = reader.optional_integer(*PADDED_VOCAB.names) or config.vocab
    return config.vocab > true_vocabulary(reader, padded)


VOCAB = ModelArgument(
    "vocab_size",
    optional_integer,
    value=lambda config: config.vocab,
    when=_grows,
    grown=lambda arguments, config: config.vocab - added_ids(arguments),
)
TRUE_VOCAB = ModelArgument(
    "flmgrow_true_vocab_size", optional_integer, value=lambda config: config.vocab, when=always
)
PADDED_VOCAB = ModelArgument("padded_vocab_size", integer(), value=lambda config: config.vocab)
"""The rows of the table. Whoever writes a file knows how many there are."""

MULTIPLE = ModelArgument(
    "make_vocab_size_divisible_by",
    integer(VOCAB_MULTIPLE),
    understood=False,
    value=lambda _: VOCAB_MULTIPLE,
)
TOKENIZER_TYPE = ModelArgument(
    "tokenizer_type", as_it_is, understood=False, value=lambda _: "HuggingFaceTokenizer"
)
TOKENIZER_MODEL = ModelArgument("tokenizer_model", as_it_is, understood=False, value=lambda _: None)

VOCABULARY_ROWS: tuple[ModelArgument[Any], ...] = (
    VOCAB, TRUE_VOCAB, PADDED_VOCAB, MULTIPLE, TOKENIZER_TYPE, TOKENIZER_MODEL,
)  # fmt: skip
