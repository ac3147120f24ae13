"""Tables as CSV files."""

from __future__ import annotations

import collections.abc as cabc
import csv
import io

from flask import request
from flask import Response
from flask import stream_with_context

from ..ledger import audit
from ..settings import get_state
from .guard import actor

# The last four are as wide as the letters of East Asia, and taken for the others there.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "＝", "＋", "－", "＠")


def note(action: str) -> None:
    """Note who takes a table. Not for a HEAD, which takes nothing."""
    if request.method == "GET":
        audit.note_alone(get_state().engine, actor(), action)


def csv_file(name: str, header: list[str], rows: cabc.Iterable[list[str]]) -> Response:
    """Send rows as they are read: a million of them take no more memory than a few."""
    response = Response(
        stream_with_context(_lines(header, rows)),
        mimetype="text/csv",
    )
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


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
    # A spreadsheet would run what begins like a formula.
    return f"'{value}" if value.startswith(_FORMULA) else value
