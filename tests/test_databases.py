"""Each test begins with an empty database, on every server."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from conftest import every_database

LEFT = {
    "sqlite": ["CREATE TABLE enrolment (done INT)"],
    "postgresql": [
        "CREATE TABLE enrolment (done INT)",
        "CREATE SCHEMA school",
        "CREATE FUNCTION odd() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
    ],
    "mysql": [
        "CREATE TABLE enrolment (done INT)",
        "CREATE VIEW enrolled AS SELECT * FROM enrolment",
        "CREATE FUNCTION odd() RETURNS INT RETURN 1",
    ],
}


@every_database
@pytest.mark.parametrize("time", ["once", "again"])
def test_what_a_test_leaves_is_gone_before_the_next(database: str, time: str) -> None:
    engine = sa.create_engine(database)

    with engine.begin() as connected:
        for statement in LEFT[engine.dialect.name]:
            connected.exec_driver_sql(statement)

    engine.dispose()
