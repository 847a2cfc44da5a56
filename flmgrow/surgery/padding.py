"""How many rows the embedding table of a result has.

Megatron-LM pads the vocabulary to a multiple of ``make_vocab_size_divisible_by`` times TP, so that
the size of a table depends on the layout. But a table need not have such a size: Megatron-LM takes
``padded_vocab_size`` as it is given, and converters give the model's own vocabulary. Padded by the
rule, such a table would change its size on the way to the very same layout, and a trainer that is
told the old size would not load it.
"""

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.placements import padded_size
from flmgrow.formats.writing import has_ranks
from flmgrow.text import Setting, Text


def stored_vocab(source: Checkpoint, vocab: int, tp: int, wanted: int | None = None) -> int:
    """Return the rows in which ``vocab`` ids are stored on ``tp`` tensor ranks.

    ``wanted`` is what the user asks for. A table of the source whose size is not Megatron-LM's rule
    keeps it where it has room and divides by ``tp``.

    Raises:
        UsageError: For a size that cannot be.
    """
    if wanted is not None:
        return _checked(wanted, vocab, tp)
    own = source.padded_vocab
    by_rule = padded_size(source.config.vocab, source.vocab_multiple, source.layout.tp)
    if has_ranks(source.format) and own != by_rule and vocab <= own and own % tp == 0:
        return own
    return padded_size(vocab, source.vocab_multiple, tp)


def _checked(wanted: int, vocab: int, tp: int) -> int:
    asked = Text(Setting("padded_vocab_size"), f" {wanted}: ")
    if wanted < vocab:
        raise UsageError(
            asked + f"the vocabulary has {vocab} ids",
            f"at least {padded_size(vocab, 1, tp)}",
        )
    if wanted % tp:
        raise UsageError(
            asked + f"does not divide by TP{tp}",
            f"such as {padded_size(wanted, 1, tp)}",
        )
    return wanted
