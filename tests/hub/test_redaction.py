"""Whatever form a server gives the token back in, it is not shown; what is harmless is."""

import base64
from urllib.parse import quote

import pytest
from hub_server import TOKEN

from flmgrow.hub.redaction import LONGEST, WITHHELD, Redactor

DATA = TOKEN.encode()


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"{{'Authorization': 'Bearer {TOKEN}'}}",
        TOKEN.upper(),
        TOKEN[::-1],
        TOKEN[5:20],
        " ".join(TOKEN),
        "\n".join(TOKEN),
        "\u200b".join(TOKEN),
        quote(TOKEN, safe=""),
        DATA.hex(),
        DATA.hex(":"),
        *(base64.b64encode(before + DATA).decode() for before in (b"", b"u", b"Bearer ", b"u:p:")),
        base64.b64encode(DATA + b" and more").decode(),
        f"{'x' * 5000}{TOKEN}",
    ],
)
def test_a_text_that_holds_the_token_is_withheld(echo: str) -> None:
    assert Redactor(TOKEN)(f"no: {echo}, sorry") == WITHHELD


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_abcdefghij of another", "token *** of another"),
        ("Authorization: Bearer abc.def", "Authorization ***"),
        ("use Basic dXNlcjpwYXNz now", "use Basic *** now"),
        ("proxy http://me:secret@host/x", "proxy http://***@host/x"),
        ("PUT https://s3/x?X-Sig=abc&y=1 failed", "PUT https://s3/x?*** failed"),
        ("Set-Cookie: session=1", "Set-Cookie ***"),
    ],
)
@pytest.mark.parametrize("token", [TOKEN, None])
def test_other_secrets_are_blotted_out(text: str, shown: str, token: str | None) -> None:
    assert Redactor(token)(text) == shown


def test_what_is_harmless_is_shown() -> None:
    text = "Repository not found for url: https://huggingface.co/api/models/org/model."
    assert Redactor(TOKEN)(text) == text
    assert Redactor(TOKEN)("two\nlines\x1b[31m") == r"two lines\x1b[31m"
    assert len(Redactor(TOKEN)("x " * 10_000)) == LONGEST
