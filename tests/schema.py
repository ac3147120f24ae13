"""Write down what the tables are, for the versions that come later.

``python -m tests.schema > tests/schemas/VERSION.json``
"""

from __future__ import annotations

import json
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite

from flask_credly.models import Base

_DIALECTS: dict[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "mysql": mysql.dialect(),
}


def describe() -> dict[str, t.Any]:
    """Get each table's columns, with what a database needs to know of them."""
    return {
        name: {
            column.name: {
                "types": {
                    dialect: column.type.compile(dialect=_DIALECTS[dialect])
                    for dialect in _DIALECTS
                },
                "nullable": column.nullable,
                "default": column.server_default is not None,
                "key": column.primary_key,
            }
            for column in table.columns
        }
        for name, table in sorted(Base.metadata.tables.items())
    }


if __name__ == "__main__":
    tables = (
        f"{json.dumps(table)}: {{\n"
        + ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(column, sort_keys=True)}"
            for name, column in columns.items()
        )
        + "\n}"
        for table, columns in describe().items()
    )
    print("{\n" + ",\n".join(tables) + "\n}")
