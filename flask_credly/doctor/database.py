"""Whether the database can be used, has our tables, and what its clock says."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from ..ledger import clock
from ..ledger import fitness
from ..ledger import tables
from ..ledger.transaction import cause
from ..models import Base
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import warning

SKEW = 60.0
"""Seconds that two clocks may differ."""


def check_database(case: Case) -> Finding:
    where = fitness.place(case.state.engine.url)

    try:
        misfit = fitness.examine(case.state.engine)
    except sa.exc.SQLAlchemyError as e:
        return error(
            f"The database at {where} cannot be reached. {cause(e)}",
            "Start it, or correct SQLALCHEMY_DATABASE_URI.",
        )

    if misfit is not None:
        return error(misfit.detail, misfit.hint)

    if narrow := tables.narrow(case.state.engine)[0]:
        return warning(
            f"The database at {where} does not store every character:"
            f" {', '.join(narrow)}. Completions of members with other"
            " characters in their name are not recorded.",
            "In SQLALCHEMY_DATABASE_URI, set charset=utf8mb4 on MariaDB and"
            " MySQL, or client_encoding=utf8 on PostgreSQL. A PostgreSQL"
            " database must have the encoding UTF8.",
        )

    return ok(f"Reachable and writable at {where}.")


def check_tables(case: Case) -> Finding:
    missing, parts = tables.missing(case.state.engine)

    if not missing and not parts:
        if narrow := tables.narrow(case.state.engine)[1]:
            return warning(
                "These columns do not store every character:"
                f" {', '.join(narrow)}. Completions of members with other"
                " characters in their name are not recorded.",
                "Change them with ALTER TABLE … MODIFY to CHARACTER SET"
                " utf8mb4, and id columns also to COLLATE utf8mb4_bin, as"
                " db.create_all() does.",
            )

        return ok(f"All {len(Base.metadata.tables)} tables and their columns exist.")

    if "migrate" in case.state.app.extensions:
        mend = "Run flask db migrate, review the migration, then run flask db upgrade."
    elif parts:
        mend = (
            "Use Flask-Migrate or ALTER TABLE. db.create_all() does not"
            " change existing tables."
        )
    else:
        mend = "Call db.create_all() after credly.init_app(app)."

    return error(f"Missing: {', '.join(missing + parts)}.", mend)


def check_clock(case: Case) -> Finding:
    before = dt.datetime.now(dt.UTC)

    with case.state.engine.connect() as connected:
        there = clock.now(connected)

    after = dt.datetime.now(dt.UTC)
    # Not more than is certain: the answer took its time.
    apart = max((there - after).total_seconds(), (before - there).total_seconds())

    if apart > SKEW:
        return _clocks(apart, "the database's", behind=there > after)

    if case.shared.credly_ahead is not None and abs(case.shared.credly_ahead) > SKEW:
        ahead = case.shared.credly_ahead
        return _clocks(abs(ahead), "Credly's", behind=ahead > 0)

    if clock.server_now(case.state.engine.dialect.name) is None:
        compared = []  # its database has no other
    else:
        compared = ["the database's"]

    if case.shared.credly_ahead is not None:
        compared.append("Credly's")

    return ok(
        f"In sync with {' and '.join(compared)}."
        if compared
        else "No other clock to compare with."
    )


def _clocks(seconds: float, whose: str, *, behind: bool) -> Finding:
    return warning(
        f"This machine's is {seconds:.0f} s {'behind' if behind else 'ahead of'}"
        f" {whose}.",
        "Synchronize both machines with NTP.",
    )
