"""A server, or a proxy before it, may echo the token it was sent; what it says is shown to people.

So nothing from outside is printed before it went through here. A text that holds a piece of the
token, plain or in a common encoding, is not shown at all: there is no telling how else it holds the
rest. Other secrets (tokens of others, credentials in addresses, signatures) are blotted out.
"""

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote

from flmgrow.errors import printable

WITHHELD = "(a text that holds the token is not shown)"
LONGEST = 400
_PIECE = 8
_BLOTS = (
    (re.compile(r"\b(?:hf|api_org)_\w{6,}"), "***"),
    (re.compile(r"(?i)\b(authorization|cookie|api-key)\b[^,;}\n]*"), r"\1 ***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 ***"),
    (re.compile(r"(\w+://)[^/@\s]+@"), r"\1***@"),
    (re.compile(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?***"),
)


def _bare(text: str) -> str:
    """Return the letters and digits alone: quotes and line breaks may be anywhere."""
    return re.sub(r"[^0-9a-z]", "", text.lower())


def _encodings(token: str) -> Iterator[str]:
    data = token.encode()
    yield from (token, token[::-1], quote(token, safe=""), data.hex())
    for shift in range(3):  # base64 of a longer text depends on where in it the token begins
        yield base64.b64encode(bytes(shift) + data).decode()[shift + 1 : -4]


class Redactor:
    """Makes any text fit to be shown to whoever must not see ``token``."""

    def __init__(self, token: str | None) -> None:
        bare = {_bare(form) for form in _encodings(token)} if token else set()
        self._pieces = {
            form[i : i + _PIECE] for form in bare for i in range(max(1, len(form) - _PIECE + 1))
        } - {""}

    def __call__(self, text: str) -> str:
        """Return ``text`` on one line of bounded length, without secrets."""
        bare = _bare(text)
        if any(piece in bare for piece in self._pieces):
            return WITHHELD
        for pattern, blot in _BLOTS:
            text = pattern.sub(blot, text)
        text = printable(" ".join(text.split()))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
