"""Texts in another encoding than UTF-8, told by how they begin.

Some editors and shells write UTF-16, or put a mark before UTF-8. The file is whole, so advice to
copy it again would lead nowhere.
"""

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

_UTF16_WITHOUT_MARK = 2
"""The first character of JSON and YAML is plain ASCII, of which UTF-16 makes two bytes."""


def encoding_hint(start: bytes) -> str:
    """Return what to do about a text that begins with ``start``, empty if it may be UTF-8."""
    first = start[:_UTF16_WITHOUT_MARK]
    if first in (BOM_UTF16_LE, BOM_UTF16_BE) or first.count(0) == 1:
        return "it looks like UTF-16: write it as UTF-8, as iconv does"
    if start.startswith(BOM_UTF8):
        return "it begins with a byte order mark: save it as UTF-8 without one"
    return ""
