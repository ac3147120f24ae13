"""Tables as CSV files."""

from __future__ import annotations

import collections.abc as cabc
import csv
import datetime as dt
import io
import re
import unicodedata

from flask import request
from flask import Response
from flask import stream_with_context

from ..ledger import audit
from .community import here
from .guard import actor

# Of cells and of rows. Which of them counts is for whoever opens the file to say.
_SEPARATORS = re.compile("([,;|\\t\\r\\n\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029])")

_LEFT_OUT = ("Cc", "Cf", "Zs", "Zl", "Zp")


def note(action: str) -> None:
    """Note who takes a table. Not for a HEAD, which takes nothing."""
    if request.method == "GET":
        audit.note_alone(here().engine, here().tenant, actor(), action)


def csv_file(name: str, header: list[str], rows: cabc.Iterable[list[str]]) -> Response:
    """Send rows as they are read: a million of them take no more memory than a few."""
    response = Response(
        stream_with_context(_lines(header, rows)),
        mimetype="text/csv",
    )
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


def cell_of(at: dt.datetime | None) -> str:
    """Write a time, in UTC, as spreadsheets take it."""
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" if at else ""


def _lines(header: list[str], rows: cabc.Iterable[list[str]]) -> cabc.Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    # Without the mark a spreadsheet takes the file for Latin-1.
    buffer.write("\ufeff")
    writer.writerow(header)

    for row in rows:
        writer.writerow([_harmless(value) for value in row])

        if buffer.tell() > 16_384:
            yield _take(buffer)

    yield _take(buffer)


def _take(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()


def _harmless(value: str) -> str:
    # A spreadsheet would run what begins like a formula, also after a semicolon where
    # it takes that for the end of a cell.
    parts = _SEPARATORS.split(value)
    text = "".join(f"'{part}" if _is_formula(part) else part for part in parts)
    return f"'{text}" if text.startswith(("\t", "\r", "\n", "\0")) else text


def _is_formula(part: str) -> bool:
    for each in part:
        # Quotes, blanks, and what has no width are left out by some.
        if each != '"' and unicodedata.category(each) not in _LEFT_OUT:
            # As wide as the letters of East Asia, too, or small.
            return unicodedata.normalize("NFKC", each)[0] in "=+-@"

    return False
