"""What the address of a request says."""

from __future__ import annotations

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


def searched() -> str:
    """Read what is searched for from the address."""
    return clean(request.args.get("q"), 255)
