"""The whole error log, page by page, with filters and an export."""

from __future__ import annotations

import dataclasses

from flask import request
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..ledger import issuances
from ..ledger import log
from ..ledger import polls
from ..ledger.paging import Page
from ..models import Account
from ..models import LogEntry
from .community import here
from .export import cell_of
from .export import csv_file
from .export import note
from .guard import may_act
from .query import number
from .query import searched
from .reading import read
from .respond import go_to
from .respond import page


@dataclasses.dataclass
class Fold:
    """Entries in a row that say the same, as one.

    :param entry: The newest of them.
    :param first: The oldest.
    :param solved: Whether there is nothing to do any more.
    """

    entry: LogEntry
    first: LogEntry
    times: int = 1
    solved: bool = False


def fold(found: Page[LogEntry], connected: Account) -> list[Fold]:
    """Put entries that say the same together, and mark what was mended since."""
    folds = _fold(found)
    ids = {each.entry.issuance_id for each in folds if each.entry.issuance_id}
    solved = read(issuances.solved, ids) if ids else set()

    for each in folds:
        if each.entry.error == log.WRONG_KEY:
            until = connected.keyless_until
            each.solved = until is None or until <= polls.time_of(here().engine)
        elif each.entry.error == log.CONNECTION_EXPIRED:
            each.solved = not connected.expired
        elif each.entry.error in (log.RATE_LIMIT, log.UNREACHABLE):
            each.solved = connected.paused_until is None
        elif each.entry.error != log.EVIDENCE_LEFT_OUT:
            each.solved = each.entry.issuance_id in solved

    return folds


def _fold(found: Page[LogEntry]) -> list[Fold]:
    folds: list[Fold] = []

    for entry in found.rows:
        last = folds[-1] if folds else None

        if last and (last.entry.error, last.entry.details) == (
            entry.error,
            entry.details,
        ):
            last.first = entry
            last.times += 1
        else:
            folds.append(Fold(entry, entry))

    return folds


def errors() -> ResponseReturnValue:
    """Show one page."""
    if (connected := read(accounts.get)) is None:
        return go_to("credly.show")

    error, text = _filter()
    found = read(
        log.page,
        error=error,
        text=text,
        before=number("before"),
        after=number("after"),
    )
    return page(
        "credly/errors.html",
        log=found,
        folds=fold(found, connected),
        error=error,
        text=text,
        errors=log.ERRORS,
        address={
            name: value for name, value in (("type", error), ("q", text)) if value
        },
    )


def export_errors() -> ResponseReturnValue:
    """Send what the filters show as a file."""
    community = here()
    note("export errors")
    rows = log.every(community.engine, community.tenant, *_filter())
    header = [gettext("Timestamp"), gettext("Error"), gettext("Details")]
    header.append(gettext("Badge number"))
    cells = (
        [
            cell_of(row.at),
            gettext(row.error),
            row.details,
            str(row.issuance_id or ""),
        ]
        for row in rows
    )
    return csv_file("credly-error-log", header, cells)


def _filter() -> tuple[str, str]:
    error = request.args.get("type", "")
    # The details name addresses, which could be guessed letter by letter.
    text = searched() if may_act() else ""
    return error if error in log.ERRORS else "", text
