"""What a host builds on stays: public names, and the tables of earlier versions."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import typing as t

import pytest
from schema import describe

import flask_credly
from flask_credly import jobs
from flask_credly import testing

TESTS = pathlib.Path(__file__).parent
NAMES = TESTS / "public_names.txt"
SCHEMAS = sorted((TESTS / "schemas").glob("*.json"))


def public_names() -> list[str]:
    """List what hosts may use, each with its signature."""
    return [
        *_of(flask_credly, flask_credly.__all__),
        *_of(jobs, ["drain"]),
        *_of(testing, testing.__all__),
    ]


def _of(module: t.Any, names: list[str]) -> t.Iterator[str]:
    for name in sorted(names):
        thing = getattr(module, name)
        full = f"{module.__name__}.{name}"

        if not callable(thing) or not hasattr(thing, "__qualname__"):
            yield full
            continue

        yield f"{full}{_signature(thing)}"

        if inspect.isclass(thing):
            for part in sorted(dir(thing)):
                if part.startswith("_"):
                    continue

                member = getattr(thing, part)
                signature = _signature(member) if callable(member) else ""
                yield f"{full}.{part}{signature}"


def _signature(thing: t.Any) -> str:
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(thing).parameters.values()
    ]
    return str(inspect.Signature(parameters))


def test_public_names_and_their_parameters_stay() -> None:
    found = public_names()

    if os.environ.get("CREDLY_TEST_UPDATE"):
        NAMES.write_text("\n".join(found) + "\n")

    assert found == NAMES.read_text().splitlines()


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_database_of_an_earlier_version_can_be_upgraded(path: pathlib.Path) -> None:
    """By adding tables and columns, while processes of that version go on writing."""
    before, now = json.loads(path.read_text()), describe()

    for table, columns in before.items():
        assert table in now, f"{table} was removed"

        for name, column in columns.items():
            assert now[table].get(name) == column, f"{table}.{name} was changed"

        for name, column in now[table].items():
            if name not in columns:
                filled = column["nullable"] or column["default"]
                assert filled, f"{table}.{name} needs a default in the database"


def test_the_tables_of_the_first_version_are_written_down() -> None:
    assert "0.1.0" in [path.stem for path in SCHEMAS]
