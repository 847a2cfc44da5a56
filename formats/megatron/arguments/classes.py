"""Which arguments of a checkpoint stop the run: by rules, so that no version's defaults are listed.

An argument is *understood* (translated to the model), the switch of a *feature* that flmgrow does
not have, *unclear*, harmless, or *unknown*: in no version's table of defaults. A switch must be
off. An unknown one stops the run if its name speaks of the model and its value does not look like a
default: a new feature must not be lost in silence. Every other unknown one is carried, and told.
"""

import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.defaults import defaults
from flmgrow.formats.megatron.arguments.names import FEATURES, HARMLESS, UNCLEAR, UNDERSTOOD
from flmgrow.formats.megatron.arguments.row import Arguments
from flmgrow.formats.torch_file.foreign_objects import is_left_out
from flmgrow.formats.vouched import Vouched
from flmgrow.text import COMMAND_LINE, Found, Setting, Text

OWN_PREFIX = "flmgrow_"
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_MODEL_WORDS = frozenset(
    """
    norm layernorm rmsnorm attention attn rotary rope activation glu geglu swiglu gelu relu gate
    gated embedding embeddings residual softmax position positions expert experts moe mamba mup
    mtp mla latent window bias head heads layer layers scale scaling multiplier mult clamp logit
    logits qk kv qkv hybrid heterogeneous
    """.split()
)
_SHOWN_LENGTH = 400
_HINT_LENGTH = 700
_MANY = 8
_SETTING = "ignore_arguments"
_OPTION = len(COMMAND_LINE.name(_SETTING)) + 2


@dataclass(frozen=True)
class Judgement:
    """What is to be said of a checkpoint's arguments, by name.

    ``features`` are switched on and not supported. ``doubtful`` may change the function; the user
    may vouch for them. ``unknown`` are carried as they are.
    """

    features: Sequence[str]
    doubtful: Sequence[str]
    unknown: Sequence[str]


def _looks_default(value: object) -> bool:
    return isinstance(value, _PLAIN) and not value


def _is_default(name: str, value: object) -> bool:
    if not isinstance(value, _PLAIN):
        return False
    plain = tuple(value) if isinstance(value, list) else value
    known = defaults().get(name, ())
    return not value or plain in known or value in known


def vouched_arguments(ignored: Collection[str]) -> Vouched:
    """Return the arguments that the user vouches for, by names and patterns."""
    return Vouched(_SETTING, ignored)


def judge(arguments: Arguments, ignored: Collection[str] = ()) -> Judgement:
    """Return what is to be said of ``arguments``; those that match ``ignored`` are passed over."""
    vouched = vouched_arguments(ignored)
    features: list[str] = []
    doubtful: list[str] = []
    unknown: list[str] = []
    for name, value in arguments.items():
        if name in UNDERSTOOD or name in HARMLESS or vouched.covers(name):
            continue
        if name in FEATURES or name in UNCLEAR:
            if not _is_default(name, value):
                (features if name in FEATURES else doubtful).append(name)
        elif name not in defaults():
            speaks = name.startswith(OWN_PREFIX) or _MODEL_WORDS & set(name.split("_"))
            off = _looks_default(value) and not name.startswith(OWN_PREFIX)
            (doubtful if speaks and not off else unknown).append(name)
    return Judgement(features, doubtful, unknown)


def refuse_unknown(arguments: Arguments, where: str, ignored: Collection[str] = ()) -> None:
    """Raise BadCheckpointError, naming every argument that changes the function and is not
    understood.

    ``ignored`` are patterns of names that the user takes responsibility for.
    """
    found = judge(arguments, ignored)
    names = [*found.features, *found.doubtful]
    if not names:
        return
    listed = Text("; ").join(
        Text(f"args.{name}: found ", Found(reprlib.repr(arguments[name]))) for name in names
    )
    if len(listed) > _SHOWN_LENGTH and len(names) > 1:
        listed = Text("args: ", ", ".join(names))
    if found.features:
        kinds = " and ".join(dict.fromkeys(FEATURES[name] for name in found.features))
        short = len(listed) + len(kinds) <= 1.5 * _SHOWN_LENGTH
        raise BadCheckpointError(
            Text(listed, f"; flmgrow does not support {kinds if short else 'these features'}"),
            "no option helps: flmgrow works on dense GPT models",
            where=where,
        )
    hint = vouched_arguments(ignored).hint(patterns_for(names))
    raise BadCheckpointError(Text(listed, ", which flmgrow does not understand"), hint, where=where)


def patterns_for(names: Sequence[str]) -> list[str]:
    """Return few patterns that cover ``names``.

    Names that share a first word no argument of Megatron-LM begins with, as another program's
    settings do, become one pattern; what cannot be typed becomes ``?``.
    """
    own = {name.partition("_")[0] for name in (*defaults(), *UNDERSTOOD, *FEATURES)}
    first = Counter(name.partition("_")[0] for name in names if "_" in name)
    patterns = [
        f"{word}_*" if word not in own and first[word] > 1 else name
        for name in names
        for word in [name.partition("_")[0]]
    ]
    typed = ("".join(c if c.isprintable() else "?" for c in one) for one in patterns)
    few = list(dict.fromkeys(typed))
    return few if sum(map(len, few)) + _OPTION * len(few) <= _HINT_LENGTH else ["*"]


def notes_of(
    arguments: Arguments, where: str, ignored: Collection[str] = (), look_only: bool = False
) -> tuple[str, ...]:
    """Return what a user should know of ``arguments`` that did not stop the run.

    ``look_only``: of those, too, that stop a run which writes.
    """
    vouched = vouched_arguments(ignored)
    found = judge(arguments, ignored)
    notes: list[str] = []
    if look_only and found.doubtful:
        hint = vouched.hint(patterns_for(found.doubtful))
        notes.append(
            f"{where}: args that flmgrow does not understand: {_few(found.doubtful)}; only "
            "inspect takes them as they are; for other commands, " + hint
        )
    if carried := [name for name in found.unknown if not is_left_out(arguments[name])]:
        notes.append(
            f"{where}: args that no known Megatron-LM has are carried as they are: {_few(carried)}"
        )
    notes += [
        Text(f"{where}: ", Setting(_SETTING, [pattern]), ": no argument is called so")
        for pattern in vouched.idle(arguments)
    ]
    notes += [
        Text(f"{where}: ", Setting(_SETTING, [name]), ": flmgrow understands it, and uses it")
        for name in ignored
        if name in UNDERSTOOD
    ]
    return tuple(notes)


def _few(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_MANY])
    return listed + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")
