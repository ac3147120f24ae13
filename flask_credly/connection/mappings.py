"""Which course or learning path gives which badge."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..catalog import clean
from ..catalog import Course
from ..catalog import Kind
from ..issuing import bell
from ..ledger import audit
from ..ledger import clock
from ..ledger import settle
from ..ledger.paging import Session
from ..models import CONNECTION_ID
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from ..settings import State
from .connecting import get
from .connecting import NotConnected

UNDO_TIME = dt.timedelta(hours=1)
"""For how long what a removal has cancelled comes back with an undo."""


class AlreadyMapped(Exception):
    """The course has a badge already.

    :param badge_name: Which.
    """

    def __init__(self, badge_name: str) -> None:
        super().__init__(badge_name)
        self.badge_name = badge_name


class UnknownTemplate(Exception):
    """Not an active badge template of the connected organization."""


class UnknownMapping(Exception):
    """There is no such mapping any more."""


def list_mappings(
    session: Session,
    *,
    start: int = 0,
    limit: int | None = None,
) -> list[Mapping]:
    """Get mappings, by the course's title.

    :param start: How many to leave out.
    :param limit: How many to get. ``None``: all.
    """
    query = sa.select(Mapping).order_by(Mapping.course_title, Mapping.id)
    return list(session.scalars(query.offset(start).limit(limit)))


def mapped_courses(
    session: Session,
) -> set[tuple[str, str]]:
    """Get the kinds and ids of the courses that are mapped."""
    found = session.execute(sa.select(Mapping.kind, Mapping.course_id))
    return {(kind, course_id) for kind, course_id in found}


def get_mapping(session: Session, mapping_id: int) -> Mapping | None:
    """Get one mapping."""
    return session.get(Mapping, mapping_id)


def course_of(mapping: Mapping) -> Course:
    """Get the course of a mapping, with the title that it had when it was mapped."""
    kind = t.cast(Kind, mapping.kind)
    return Course(id=mapping.course_id, title=mapping.course_title, kind=kind)


def add_mapping(
    state: State,
    course: Course,
    template_id: str,
    *,
    undo: bool = False,
    by: str | None = None,
) -> Mapping:
    """Map a course to a badge template.

    :param undo: Whether this takes back a removal: what was cancelled by it is due
        again.
    :param by: Who does it, for :func:`.audit.note`.
    :raises NotConnected: There is no connection.
    :raises UnknownTemplate: No such active template.
    :raises AlreadyMapped: The course has a badge.
    """
    session = state.session
    template = _active_template(session, template_id)
    mapping = Mapping(
        connection_id=CONNECTION_ID,
        kind=course.kind,
        course_id=course.id,
        course_title=clean(course.title, 500),
        template_id=template.id,
    )
    session.add(mapping)

    if undo:
        session.execute(
            _issuances(course, "cancelled")
            .where(
                Issuance.error == settle.UNMAPPED,
                Issuance.settled_at > clock.now(session.connection()) - UNDO_TIME,
            )
            .values(
                state="pending",
                settled_at=None,
                error=None,
                due_at=clock.now(session.connection()),
            )
        )

    _note(session, by, "undo" if undo else "map", course, template)
    _commit(session, course)

    if undo:
        bell.ring(state)

    return mapping


def change_mapping(
    state: State,
    mapping_id: int,
    course: Course,
    template_id: str,
    *,
    by: str | None = None,
) -> Mapping:
    """Map another course, or to another badge template. Badges that wait, and were
    not perhaps issued already, become the new one.

    :param by: Who does it, for :func:`.audit.note`.
    :raises UnknownMapping: It was removed.
    :raises NotConnected: There is no connection.
    :raises UnknownTemplate: No such active template.
    :raises AlreadyMapped: The course has another badge.
    """
    session = state.session

    if (mapping := get_mapping(session, mapping_id)) is None:
        raise UnknownMapping

    template = _active_template(session, template_id)
    mapping.kind = course.kind
    mapping.course_id = course.id
    mapping.course_title = clean(course.title, 500)
    mapping.template = template
    # First: a backfill that writes at this moment is waited for, and its rows seen.
    _write(session.flush, session, course)
    unsent = Issuance.maybe_issued.is_(False)
    new = {"template_id": template.id, "badge_name": template.name}
    session.execute(_issuances(course, "pending").where(unsent).values(new))
    # A worker has these, and has not begun them: they are taken back from it.
    now = clock.now(session.connection())
    held = {"state": "pending", "lease": None, "due_at": now}
    session.execute(_issuances(course, "sending").where(unsent).values(new | held))
    _note(session, by, "change mapping", course, template)
    _commit(session, course)
    return mapping


def remove_mapping(
    state: State, mapping_id: int, *, by: str | None = None
) -> Mapping | None:
    """Remove a mapping. Badges already issued are kept; those that wait are cancelled
    when their turn comes.

    :param by: Who does it, for :func:`.audit.note`.
    :return: The removed mapping, or ``None`` if there was none.
    """
    session = state.session

    if (mapping := get_mapping(session, mapping_id)) is None:
        return None

    session.delete(mapping)
    _note(session, by, "remove mapping", course_of(mapping), mapping.template)
    session.commit()
    return mapping


def _active_template(session: orm.scoped_session[t.Any], template_id: str) -> Template:
    if get(session) is None:
        raise NotConnected

    template = session.get(Template, template_id)

    if template is None or not template.active:
        raise UnknownTemplate

    return template


def _note(
    session: orm.scoped_session[t.Any],
    by: str | None,
    action: str,
    course: Course,
    template: Template,
) -> None:
    title = clean(course.title, 500) or course.id
    target = f"{title} → {template.name}"
    audit.note(session.connection(), by, action, target)


def _issuances(course: Course, state: str) -> sa.Update:
    # Without a flush: what the unique constraint says is to be heard at the commit.
    return (
        sa.update(Issuance)
        .where(
            Issuance.kind == course.kind,
            Issuance.course_id == course.id,
            Issuance.state == state,
        )
        .execution_options(autoflush=False, synchronize_session=False)
    )


def _commit(session: orm.scoped_session[t.Any], course: Course) -> None:
    _write(session.commit, session, course)


def _write(
    write: t.Callable[[], None], session: orm.scoped_session[t.Any], course: Course
) -> None:
    # The unique constraint decides, also between two admins at the same time.
    try:
        write()
    except sa.exc.IntegrityError:
        session.rollback()
        other = session.scalars(
            sa.select(Mapping).where(
                Mapping.kind == course.kind, Mapping.course_id == course.id
            )
        ).one_or_none()

        if other is None:
            raise NotConnected from None

        raise AlreadyMapped(other.template.name) from None
