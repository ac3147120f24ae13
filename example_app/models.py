"""Members, courses, and who is enrolled in what."""

from __future__ import annotations

import datetime as dt
import time
import typing as t

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    """The host's own base."""


db = SQLAlchemy(model_class=Base)
Kind = t.Literal["course", "learning_path"]


class Person(Base):
    """A member, or the admin."""

    __tablename__ = "person"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    email: orm.Mapped[str]
    first_name: orm.Mapped[str]
    last_name: orm.Mapped[str]
    is_admin: orm.Mapped[bool] = orm.mapped_column(default=False)


class Course(Base):
    """A course or a learning path."""

    __tablename__ = "course"

    id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    kind: orm.Mapped[Kind] = orm.mapped_column(sa.String(20), default="course")


class Enrolment(Base):
    """A member's way through a course. Complete once ``completed_at`` is set."""

    __tablename__ = "enrolment"

    person_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Person.id), primary_key=True
    )
    course_id: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Course.id), primary_key=True
    )
    completed_at: orm.Mapped[dt.datetime | None]


def create_example_data() -> None:
    """Create the tables, and fill them if they are empty. Processes that begin at once
    do not disturb each other.
    """
    until = time.monotonic() + 10

    while True:
        try:
            return _create_example_data()
        except sa.exc.DatabaseError:
            # Another process was faster. What it has made is found next time.
            db.session.rollback()

            if time.monotonic() > until:
                raise

            time.sleep(0.1)


def _create_example_data() -> None:
    db.create_all()

    if db.session.query(Person).first():
        return

    people = [
        Person(email="admin@example.org", first_name="Alex", last_name="Admin"),
        Person(email="ada@example.org", first_name="Ada", last_name="Example"),
        Person(email="ben@example.org", first_name="Ben", last_name="Example"),
        Person(email="cleo@example.org", first_name="Cleo", last_name="Example"),
        Person(email="dan@example.org", first_name="Dan", last_name=""),
    ]
    people[0].is_admin = True
    courses = [
        Course(id="py-101", title="Python 101"),
        Course(id="sql", title="SQL basics"),
        Course(id="html", title="HTML and CSS"),
        Course(id="testing", title="Testing with pytest"),
        Course(id="data", title="Data path", kind="learning_path"),
        Course(id="web", title="Web path", kind="learning_path"),
    ]
    db.session.add_all([*people, *courses])
    db.session.commit()
