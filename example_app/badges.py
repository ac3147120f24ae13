"""What the platform tells Flask-Credly, and when.

The hooks take ``tenant=``, the community that is asked about. While the platform has
one, that is always "default", and they could leave it out.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import uuid

from flask import current_app
from flask import session

from flask_credly import completion_withdrawn
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import Member
from flask_credly import PastCompletion

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

    @credly.is_viewer
    def is_viewer() -> bool:
        person = current_person()
        return person is not None and person.is_viewer

    @credly.may_revoke
    def may_revoke() -> bool:
        person = current_person()
        return person is not None and person.may_revoke

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
    ) -> cabc.Iterator[PastCompletion]:
        query = (
            db.session.query(models.Person, models.Enrolment)
            .join(models.Enrolment)
            .filter_by(course_id=course.id, community=tenant)
        )

        if since is not None:
            query = query.filter(models.Enrolment.completed_at >= since)

        for person, enrolment in query:
            if enrolment.completed_at is not None:
                yield PastCompletion(
                    to_member(person),
                    # SQLite knows no time zones.
                    enrolment.completed_at.replace(tzinfo=dt.UTC),
                    completion_id=enrolment.completion_id,
                )

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
    """Mark a course complete. The badge's record is kept in the same transaction.

    Once more is a completion of its own, as its id says: where the mapping renews the
    badge, that need not wait for 30 days here.
    """
    now, completion_id = dt.datetime.now(dt.UTC), str(uuid.uuid4())
    db.session.merge(
        models.Enrolment(
            person_id=person.id,
            community=course.community,
            course_id=course.id,
            completed_at=now,
            completion_id=completion_id,
        )
    )
    course_completed.send(
        current_app._get_current_object(),  # type: ignore[attr-defined]
        member=to_member(person),
        course_id=course.id,
        kind=course.kind,
        completed_at=now,
        completion_id=completion_id,
        tenant=course.community,
    )
    db.session.commit()


def withdraw(person: models.Person, course: models.Course) -> None:
    """Take a completion back. What becomes of its badge, the mapping says."""
    key = (person.id, course.community, course.id)
    db.session.delete(db.get_or_404(models.Enrolment, key))
    completion_withdrawn.send(
        current_app._get_current_object(),  # type: ignore[attr-defined]
        member_id=str(person.id),
        course_id=course.id,
        kind=course.kind,
        tenant=course.community,
    )
    db.session.commit()
