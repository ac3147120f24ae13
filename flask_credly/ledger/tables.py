"""Whether our tables are in the host's database."""

from __future__ import annotations

import collections.abc as cabc

import sqlalchemy as sa

from ..models import Base
from .transaction import connect

MISSING = (
    "Tables or columns of Flask-Credly are missing in the database. Run your"
    " migrations (flask db upgrade) or db.create_all(). flask credly doctor shows"
    " which are missing."
)
"""What to say where :func:`explain` says so."""


def missing(engine: sa.Engine) -> tuple[list[str], list[str]]:
    """Find the tables that are not there, and what lacks in those that are."""
    # Where our statements are sent to.
    names = engine.get_execution_options().get("schema_translate_map") or {}

    with connect(engine) as connection:
        return _missing(sa.inspect(connection), names.get(None))


def _missing(
    inspector: sa.Inspector, schema: str | None
) -> tuple[list[str], list[str]]:
    there = set(inspector.get_table_names(schema))
    tables = Base.metadata.sorted_tables
    return [table.name for table in tables if table.name not in there], [
        part
        for table in tables
        if table.name in there
        for part in _missing_parts(inspector, table, schema)
    ]


def explain(engine: sa.Engine, error: Exception) -> bool:
    """Whether missing tables explain an error of the database."""
    if not isinstance(error, (sa.exc.OperationalError, sa.exc.ProgrammingError)):
        return False

    try:
        return any(missing(engine))
    except sa.exc.SQLAlchemyError:
        return False


def _missing_parts(
    inspector: sa.Inspector, table: sa.Table, schema: str | None
) -> cabc.Iterator[str]:
    columns = {column["name"] for column in inspector.get_columns(table.name, schema)}
    lacking = [name for name in table.columns.keys() if name not in columns]
    yield from (f"{table.name}.{name}" for name in lacking)

    # What keeps a second badge for one completion out.
    found = [
        *(each["column_names"] for each in inspector.get_indexes(table.name, schema)),
        *(
            each["column_names"]
            for each in inspector.get_unique_constraints(table.name, schema)
        ),
    ]

    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint):
            names = [column.name for column in constraint.columns]

            if names not in found and not set(names) & set(lacking):
                yield f"the unique constraint of {table.name} on {', '.join(names)}"


def narrow(engine: sa.Engine) -> tuple[list[str], list[str]]:
    """Find what cannot hold every character: of the way to the database, and of the
    columns of our tables.
    """
    with connect(engine) as connection:
        if connection.dialect.name == "postgresql":
            names = ("server_encoding", "client_encoding")
            found = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in names}
            return _other_than("UTF8", found), []

        if connection.dialect.name not in ("mysql", "mariadb"):
            return [], []

        names = ("character_set_client", "character_set_connection")
        found = {name: connection.scalar(sa.text(f"SELECT @@{name}")) for name in names}
        columns = connection.execute(
            sa.text(
                "SELECT table_name, column_name, character_set_name"
                " FROM information_schema.columns WHERE table_schema = DATABASE()"
                " AND character_set_name NOT IN ('utf8mb4', 'utf16', 'utf32')"
            )
        )
        ours = {
            f"{table}.{column}": charset
            for table, column, charset in columns
            if table in Base.metadata.tables
        }
        return _other_than("utf8mb4", found), _other_than("", ours)


def _other_than(wanted: str, found: dict[str, str]) -> list[str]:
    return [f"{name} ({is_})" for name, is_ in found.items() if is_ != wanted]
