"""What the platform tells Flask-Credly, and when.

The hooks take ``tenant=``, the community that is asked about. While the platform has
one, that is always "default", and they could leave it out.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt

from flask import current_app
from flask import session

from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import Member

from . import models
from .models import db


def make_credly(*, several: bool) -> Credly:
    """Make the extension.

    :param several: Whether the platform has more than one community.
    """
    credly = Credly()

    @credly.courses
    def courses(tenant: str) -> cabc.Iterator[Course]:
        for course in db.session.query(models.Course).filter_by(community=tenant):
            yield Course(id=course.id, title=course.title, kind=course.kind)

    @credly.is_admin
    def is_admin() -> bool:
        person = current_person()
        return person is not None and person.is_admin

    @credly.actor
    def name_actor() -> str | None:
        person = current_person()
        return f"{person.first_name} {person.last_name}" if person else None

    @credly.member
    def load_member(member_id: str, tenant: str) -> Member | None:
        people = db.session.query(models.Person)
        person = people.filter_by(id=int(member_id), community=tenant).first()
        return to_member(person) if person else None

    @credly.past_completions
    def past_completions(
        course: Course, since: dt.datetime | None, tenant: str
    ) -> cabc.Iterator[tuple[Member, dt.datetime]]:
        query = (
            db.session.query(models.Person, models.Enrolment.completed_at)
            .join(models.Enrolment)
            .filter_by(course_id=course.id, community=tenant)
        )

        if since is not None:
            query = query.filter(models.Enrolment.completed_at >= since)

        for person, completed_at in query:
            if completed_at is not None:
                # SQLite knows no time zones.
                yield to_member(person), completed_at.replace(tzinfo=dt.UTC)

    if several:

        @credly.tenant
        def find_tenant() -> str | None:
            return current_community()

        @credly.is_operator
        def is_operator() -> bool:
            person = current_person()
            return person is not None and person.is_operator

    return credly


def current_person() -> models.Person | None:
    """Get the person that the visitor has chosen to be."""
    return db.session.get(models.Person, session.get("person_id", 0))


def current_community() -> str | None:
    """Get the community that the visitor sees: where there is one, that; else the one
    of the person that the visitor has chosen to be.
    """
    known = models.communities()

    if len(known) == 1:
        return known[0]

    person = current_person()
    return person.community if person else None


def to_member(person: models.Person) -> Member:
    return Member(
        id=str(person.id),
        email=person.email,
        first_name=person.first_name,
        last_name=person.last_name,
    )


def complete(person: models.Person, course: models.Course) -> None:
    """Mark a course complete. The badge's record is kept in the same transaction."""
    now = dt.datetime.now(dt.UTC)
    db.session.merge(
        models.Enrolment(
            person_id=person.id,
            community=course.community,
            course_id=course.id,
            completed_at=now,
        )
    )
    course_completed.send(
        current_app._get_current_object(),  # type: ignore[attr-defined]
        member=to_member(person),
        course_id=course.id,
        kind=course.kind,
        completed_at=now,
        tenant=course.community,
    )
    db.session.commit()
