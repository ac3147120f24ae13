"""What the address of a request says."""

from __future__ import annotations

import urllib.parse

from flask import request

from ..catalog import clean

MAX_ID = 2**31 - 1
"""The largest id that a row can have. PostgreSQL takes no larger one in a question."""


def number(name: str) -> int | None:
    """Read a row's id from the address."""
    return read_number(request.args.get(name, ""))


def read_number(value: str) -> int | None:
    """Read a row's id."""
    found = int(value) if value.isdecimal() and len(value) < 18 else None
    return found if found is None or found <= MAX_ID else None


_ENCODED = "*"


def write_key(kind: str, id: str) -> str:
    """Write a course in a form or an address, as ``kind:id``.

    A browser writes line breaks in its own way, and a form's field loses its outer
    blanks. An id with such is encoded, and marked as that beside the kind.
    """
    if id.isprintable() and id == id.strip():
        return f"{kind}:{id}"

    return f"{kind}{_ENCODED}:{urllib.parse.quote(id, safe='')}"


def read_key(text: str) -> tuple[str, str]:
    """Read what :func:`write_key` has written."""
    kind, _, id = text.partition(":")

    if kind.endswith(_ENCODED):
        kind, id = kind.removesuffix(_ENCODED), urllib.parse.unquote(id)

    # PostgreSQL takes no NUL, and no course has one.
    return kind.replace("\0", ""), id.replace("\0", "")


def searched() -> str:
    """Read what is searched for from the address."""
    return clean(request.args.get("q"), 255)
