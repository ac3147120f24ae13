"""Hides what was sent where an answer repeats it, however it is spelled there."""

from __future__ import annotations

import base64
import collections.abc as cabc
import functools
import html.entities
import re

_LONG = 16
"""Characters from which on a text cannot be a part of another word by chance."""

_MOST, _MARGIN = 20_000, 4_000
"""Characters of a text that are looked through, and those at its end that are dropped
where it goes on: as many as a secret can have in its longest spelling.
"""

_ADDRESS = re.compile(
    r"[^\s@<>\"'(),;:=&|]{1,64}(?:@|%(?:25)?40|&#0*64;|&#x0*40;|\\u0040|&commat;)"
    r"[\w.%-]{1,255}",
    re.I,
)


def mask(text: str, hide: cabc.Iterable[str]) -> str:
    """Put ``***`` in place of whatever was sent, and of every e-mail address.

    Knows what URLs, forms, JSON and HTML make of it, twice encoded also, and base64.

    :param hide: What was sent. A short one is hidden only as a word of its own.
    """
    cut = len(text) > _MOST
    text = text[:_MOST]

    for sent in sorted({*hide} - {""}, key=len, reverse=True):
        text = _pattern(sent).sub("***", text)

    text = _ADDRESS.sub("***", text)
    # What was cut in half is not known again.
    return text[:-_MARGIN] if cut else text


@functools.lru_cache(64)
def _pattern(sent: str) -> re.Pattern[str]:
    whole = "".join(_spellings(char) for char in sent)

    if len(sent) < _LONG:
        # What stands before it may be encoded as well, such as "%3A".
        before = r"(?:(?<![^\W_])|(?<=%[\dA-F]{2})|(?<=\\u[\dA-F]{4}))"
        return re.compile(rf"{before}{whole}(?![^\W_])", re.I)

    return re.compile("|".join([whole, *_base64(sent)]), re.I)


def _spellings(char: str) -> str:
    """Write a pattern for one character in every spelling."""
    code = ord(char)
    data = char.encode("utf-8", "surrogatepass")
    units = char.encode("utf-16-be", "surrogatepass")
    found = [
        re.escape(char),
        "".join(rf"%(?:25)*{byte:02x}" for byte in data),
        "".join(
            rf"\\+u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)
        ),
        rf"&(?:amp;)*#(?:0*{code}|x0*{code:x});",
        *(
            rf"&(?:amp;)*{re.escape(name.rstrip(';'))};"
            for name in _names().get(char, ())
        ),
    ]

    if char == " ":
        found.append(r"\+|%(?:25)*2b")

    if char in "\"'\\/":
        found.append(rf"\\+{re.escape(char)}")

    return f"(?:{'|'.join(found)})"


@functools.cache
def _names() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    for name, char in html.entities.html5.items():
        if name.endswith(";"):
            found.setdefault(char, []).append(name)

    return found


def _base64(sent: str) -> cabc.Iterator[str]:
    """Write what base64 makes of a text, wherever it begins in what was encoded."""
    data = sent.encode("utf-8", "surrogatepass")

    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode()
        # Only what no neighbour has a part in.
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        inner = re.escape(encoded[first:last])
        yield inner.replace(r"\+", r"[+-]").replace("/", "[/_]")
