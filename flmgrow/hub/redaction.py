"""Removing tokens from what a server says before it is shown.

A server, or a proxy before it, may echo the token it was sent; what it says is shown to people. So
nothing from outside is printed before it went through here. A text that holds a piece of the token,
plain or in any common encoding, is not shown at all: there is no telling how else it holds the
rest. Other secrets (tokens of others, credentials in addresses, signatures) are blotted out.
"""

import base64
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from urllib.parse import quote

from flmgrow.errors import printable

WITHHELD = "(a text that holds the token is not shown)"
LONGEST = 400
_PIECE = 8
_WIDE_PIECE = 20
_NAMED = r"token|secret|passw(?:or)?d|signature|(?:api|access|private)[_-]?key"
_BLOTS = (
    (
        re.compile(r"\b(?:(?:hf|api_org|gh[oprsu]|github_pat)_|(?:glpat|sk|xox[abp])-)[\w-]{6,}"),
        "***",
    ),
    (re.compile(r"(?i)\b(authorization|cookie|api-key)\b[^,;}\n]*"), r"\1 ***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 ***"),
    # A password may have a slash or another @ in it: what follows the colon is no port then.
    (re.compile(r"(/{2,3})[^/@:\s]*:(?!\d*(?:[/?#]|$))[^\s'\"]*@"), r"\1***@"),
    (re.compile(r"((?:\w+:)?/{2,3}|\w+:/)[^/\s]+@"), r"\1***@"),
    (re.compile(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?***"),
    (re.compile(rf"(?i)((?:{_NAMED})\w*=)[^\s&;,'\")]+"), r"\1***"),
)


def _bare(text: str) -> str:
    """Return the letters and digits alone, of any width: quotes and line breaks may be anywhere."""
    return re.sub(r"[^0-9a-z]", "", unicodedata.normalize("NFKC", text).lower())


# --- how a text can say the token: forms of the token that are looked for in the text's characters


def _base64(data: bytes) -> Iterator[str]:
    # What stands before the token in a longer text decides where groups of bytes begin in it, and
    # the first and last group are made of other bytes, too.
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + data).decode()[4 if shift else 0 : -4]


def _base32(data: bytes) -> Iterator[str]:
    for encode in (base64.b32encode, base64.b32hexencode):
        for shift in range(5):
            yield encode(bytes(shift) + data).decode()[8 if shift else 0 : -8]


def _encodings(token: str) -> Iterator[str]:
    data = token.encode()
    yield from (token, quote(token, safe=""), codecs.encode(token, "rot13"), data.hex())
    yield from _base32(data)
    yield from _base64(data)


def _wide_encodings(token: str) -> Iterator[str]:
    """Yield forms that take several letters or digits for each character of the token."""
    yield "".join(str(ord(character)) for character in token)
    for data in (token.encode("utf-16-le"), token.encode("utf-16-be")):
        yield data.hex()
        yield from _base64(data)
    for once in _base64(token.encode()):
        yield from _base64(once.encode())


_BASE85 = (base64.b85encode, base64.a85encode)


def _exact_encodings(token: str) -> Iterator[str]:
    """Yield forms in which other characters than letters and digits, and case, matter."""
    data = token.encode()
    for encode in _BASE85:
        for shift in range(4):
            yield encode(bytes(shift) + data).decode()[5 if shift else 0 : -5]


# --- forms of the text in which it may say the token: escapes taken for what they stand for

_ESCAPES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"(?i)%u([0-9a-f]{4})|%([0-9a-f]{2})|=([0-9a-f]{2})"),
        lambda found: chr(int(found[1] or found[2] or found[3], 16)),
    ),
    (
        re.compile(
            r"(?i)\\+(?:u\{0*([0-9a-f]{1,6})\}|u([0-9a-f]{4})|x\{?([0-9a-f]{2})\}?|U([0-9a-f]{8}))"
        ),
        lambda found: _character(int(next(filter(None, found.groups())), 16)),
    ),
    (re.compile(r"\\+([0-3]?[0-7]{2,3})"), lambda found: _character(int(found[1], 8))),
)

_NUMBERS = {
    10: re.compile(r"(?<![0-9a-zA-Z])(?:0d)?([0-9]{1,3})(?![0-9a-zA-Z])"),
    16: re.compile(r"(?<![0-9a-zA-Z])(?:0x|x|u\+)?([0-9a-fA-F]{1,4})(?![0-9a-zA-Z])", re.I),
    8: re.compile(r"(?<![0-9a-zA-Z])(?:0o)?0?([0-7]{2,3})(?![0-9a-zA-Z])"),
    2: re.compile(r"(?<![0-9a-zA-Z])(?:0b)?([01]{7,8})(?![0-9a-zA-Z])"),
}
"""By their base, what the numbers of single characters look like where they are listed."""


def _character(number: int) -> str:
    return chr(number) if number < 0x110000 else ""


def _readings(text: str) -> Iterator[str]:
    """Yield the text as it is, and as it reads with escapes undone once, twice or thrice."""
    yield text
    for _ in range(3):
        undone = html.unescape(text)
        undone = re.sub(r"</?[a-zA-Z][^<>]*>", "", undone)
        for pattern, stands_for in _ESCAPES:
            undone = pattern.sub(stands_for, undone)
        if undone == text:
            break
        text = undone
        yield text


def _listed(text: str) -> Iterator[str]:
    """Yield what the numbers in a text say if they are characters."""
    for base, pattern in _NUMBERS.items():
        yield "".join(_character(int(number, base)) for number in pattern.findall(text))


def _run_together(text: str) -> Iterator[str]:
    """Yield what long runs of decimal or binary digits say: characters without gaps."""
    for run in re.findall(r"[0-9]{16,}", text):
        for width in (2, 3, 7, 8):
            for start in range(width):
                parts = (run[i : i + width] for i in range(start, len(run) - width + 1, width))
                base = 2 if set(run) <= {"0", "1"} else 10
                yield "".join(_character(int(part, base)) for part in parts)


class Redactor:
    """Makes any text fit to be shown to whoever must not see ``token``."""

    def __init__(self, token: str | None) -> None:
        forms = {_bare(form) for form in _encodings(token)} if token else set()
        wide = {_bare(form) for form in _wide_encodings(token)} if token else set()
        self._pieces = _pieces(forms | {form[::-1] for form in forms}) | _pieces(wide, _WIDE_PIECE)
        self._exact = _pieces(set(_exact_encodings(token))) if token else set()

    def holds_token(self, text: str) -> bool:
        """Return whether a text holds a piece of the token in any form that is looked for."""
        for reading in _readings(text):
            bare = _bare(reading)
            if any(piece in bare for piece in self._pieces):
                return True
            solid = "".join(reading.split())
            if any(piece in solid for piece in self._exact):
                return True
            said = map(_bare, (*_listed(reading), *_run_together(reading)))
            if any(piece in own for own in said for piece in self._pieces):
                return True
        return False

    def __call__(self, text: str) -> str:
        """Return ``text`` on one line of bounded length, without secrets."""
        if self._pieces and self.holds_token(text[:MOST]):
            return WITHHELD
        text = without_credentials(text[:MOST])
        text = printable(" ".join(text.split()))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


MOST = 1 << 16
"""Characters of a text that are looked at; none after them is shown."""


def without_credentials(text: str) -> str:
    """Return ``text`` with whatever looks like a token, a password or a signature blotted out.

    If it has one in escapes alone, they are undone.
    """
    *_, undone = _readings(text)
    return _blotted(text if _blotted(undone) == undone else undone)


def _blotted(text: str) -> str:
    for pattern, blot in _BLOTS:
        text = pattern.sub(blot, text)
    return text


def _pieces(forms: set[str], length: int = _PIECE) -> set[str]:
    return {
        form[i : i + length] for form in forms for i in range(max(1, len(form) - length + 1))
    } - {""}
