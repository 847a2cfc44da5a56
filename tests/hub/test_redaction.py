"""Whatever form a server gives the token back in, it is not shown; what is harmless is."""

import base64
import codecs
from pathlib import Path
from urllib.parse import quote

import pytest
from commands import flmgrow
from hub_server import TOKEN

from flmgrow.errors import FlmgrowError, printable
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


def each(form: str, between: str = "") -> str:
    """The token's characters, each in a form."""
    return between.join(form.format(n=ord(c), c=c) for c in TOKEN)


ESCAPED = {
    "decimal": each("{n}", " "),
    "decimal list": str([ord(c) for c in TOKEN]),
    "decimal with zeros": each("{n:03d}"),
    "decimal with dots": each("{n}", "."),
    "hexadecimal list": each("0x{n:02x}", ", "),
    "octal list": each("{n:o}", " "),
    "binary": each("{n:08b}", " "),
    "binary in one": each("{n:08b}"),
    "entities": each("&#{n};"),
    "hexadecimal entities": each("&#x{n:X};"),
    "entities without an end": each("&#{n}", " "),
    "entities twice": each("&amp;#{n};"),
    "percent": each("%{n:02X}"),
    "percent twice": each("%25{n:02x}"),
    "percent of JavaScript": each("%u{n:04x}"),
    "quoted printable": each("={n:02X}"),
    "x escapes": each("\\x{n:02x}"),
    "u escapes": each("\\u{n:04x}"),
    "u escapes, escaped": each("\\\\u{n:04x}"),
    "U escapes": each("\\U{n:08x}"),
    "u escapes in braces": each("\\u{{{n:x}}}"),
    "code points": each("U+{n:04X}", " "),
    "octal escapes": each("\\{n:03o}"),
    "tags": each("<b>{c}</b>"),
    "decimal in one": each("{n}"),
    "wide letters": "".join(chr(ord(c) + 0xFEE0) for c in TOKEN),
    "rot13": codecs.encode(TOKEN, "rot13"),
    "base64 backwards": base64.b64encode(DATA).decode()[::-1],
    "base32hex": base64.b32hexencode(b"x" + DATA).decode(),
    "hex of utf-16": TOKEN.encode("utf-16-le").hex(),
    "base64 of utf-16": base64.b64encode(TOKEN.encode("utf-16-be")).decode(),
    "base64 twice": base64.b64encode(b"x" + base64.b64encode(b"u:" + DATA + b"@host")).decode(),
    "half in escapes": TOKEN[:7] + each("\\u{n:04x}")[6 * 7 :],
}
for _shift in range(8):
    _DATA = b"x" * _shift + TOKEN.encode() + b"y" * (7 - _shift)
    ESCAPED[f"base32 {_shift}"] = base64.b32encode(_DATA).decode()
    ESCAPED[f"base64 {_shift}"] = base64.b64encode(_DATA).decode()
    ESCAPED[f"url-safe base64 {_shift}"] = base64.urlsafe_b64encode(_DATA).decode()
    ESCAPED[f"base85 {_shift}"] = base64.b85encode(_DATA).decode()
    ESCAPED[f"ascii85 {_shift}"] = base64.a85encode(_DATA).decode()
    ESCAPED[f"hex {_shift}"] = _DATA.hex(" ")
    ESCAPED[f"base64 in percent {_shift}"] = quote(base64.b64encode(_DATA))


@pytest.mark.parametrize("form", ESCAPED)
def test_a_text_that_holds_the_token_in_another_form_is_withheld(form: str) -> None:
    assert Redactor(TOKEN)(f"no: {ESCAPED[form]}, sorry") == WITHHELD


@pytest.mark.parametrize("form", ESCAPED)
def test_another_token_in_that_form_is_no_reason(form: str) -> None:
    """The control: it is this token that is found, not the form."""
    assert not Redactor("hf_" + "Zq9" * 12).holds_token(ESCAPED[form])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf://user:hf_abcdefghij@org/name", "hf://***@org/name"),
        ("hf:/user:secret@org/name: is no name", "hf:/***@org/name: is no name"),
        (f"https://{TOKEN}@huggingface.co/x", "https://***@huggingface.co/x"),
        ("https:/hf_abc@huggingface.co/x", "https:/***@huggingface.co/x"),
        ("https://user:pa/ss@host/x", "https://***@host/x"),
        ("https:/user:p@ss@host/x: is no name", "https:/***@host/x: is no name"),
        ("https://host/x?a=1&token=secret#k", "https://host/x?a=1&token=***#k"),
        ("https:/host/x#access_token=secret: no", "https:/host/x#access_token=*** no"),
        ("http://host:8080/x@y and http://host:80", "http://host:8080/x@y and http://host:80"),
        (f"no option --token={TOKEN}", "no option --token=***"),
        (
            "hf://gpt2@main and hf://org/name@refs/pr/1",
            "hf://gpt2@main and hf://org/name@refs/pr/1",
        ),
        ("/data/hf_checkpoint/x", "/data/hf_checkpoint/x"),
    ],
)
def test_what_was_typed_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert FlmgrowError(text, text).message == shown
    assert FlmgrowError(text, text).hint == shown


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", f"hf://user:{TOKEN}@org/name"),
        ("inspect", f"hf://{TOKEN}@org/name"),
        ("inspect", f"https://user:{TOKEN}@huggingface.co/org/name"),
        ("inspect", f"https://{TOKEN}@huggingface.co/org/name"),
        ("inspect", ".", f"--token={TOKEN}"),
        ("inspect", ".", f"https://{TOKEN}@huggingface.co/org/name"),
        (f"https://{TOKEN}@huggingface.co/org/name",),
        ("export", ".", f"hf://user:{TOKEN}@org/name"),
        ("export", ".", "out", "--push-to", f"https://{TOKEN}@huggingface.co/org/name"),
        ("export", ".", "out", "--push-to", f"user:{TOKEN}@org/name"),
        ("verify", ".", f"hf://user:{TOKEN}@org/name"),
        ("data", "prepare", f"https://{TOKEN}@host/x.jsonl", "out", "--tokenizer", "bytes"),
        ("train", f"https://{TOKEN}@host/stage.yaml"),
        ("run", f"https://{TOKEN}@host/stage.yaml"),
    ],
)
def test_a_token_on_the_command_line_is_not_shown_again(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = flmgrow(*words)
    assert outcome.code in (2, 3)
    assert "error: " in outcome.err
    for piece in (TOKEN[3:], TOKEN[:12], TOKEN[-12:]):
        assert piece not in outcome.err + outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_abcdefghij of another", "token *** of another"),
        ("Authorization: Bearer abc.def", "Authorization ***"),
        ("use Basic dXNlcjpwYXNz now", "use Basic *** now"),
        ("proxy http://me:secret@host/x", "proxy http://***@host/x"),
        ("PUT https://s3/x?X-Sig=abc&y=1 failed", "PUT https://s3/x?*** failed"),
        ("Set-Cookie: session=1", "Set-Cookie ***"),
        ("at https%3A%2F%2Fme%3Asecret%40host/x", "at https://***@host/x"),
        ("at https:\\u002f\\u002fme:secret@host", "at https://***@host"),
        ("at //me:secret@host/x", "at //***@host/x"),
        ("HF_TOKEN=secret", "HF_TOKEN=***"),
        ("ghp_ABCDEFGHJKLMNPQR", "***"),
        ("hf://org/name@main", "hf://org/name@main"),
        ("100%25 of a%2Fb at http://host:80/x", "100%25 of a%2Fb at http://host:80/x"),
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
