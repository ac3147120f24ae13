"""Which course or learning path gives which badge."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..catalog import clean
from ..catalog import Course
from ..catalog import Kind
from ..issuing import notifier
from ..ledger import audit
from ..ledger import clock
from ..ledger import gates
from ..ledger import retrying
from ..ledger.paging import Session
from ..ledger.transaction import in_session
from ..ledger.transaction import in_transaction
from ..ledger.transitions import admin
from ..models import Mapping
from ..models import RemovedMapping
from ..models import Template
from ..options import Options
from ..state import Community
from .connecting import get
from .connecting import NotConnected

UNDO_TIME = dt.timedelta(hours=1)
"""For how long a removal can be undone, and what it has cancelled comes back."""


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
    tenant: str,
    *,
    start: int = 0,
    limit: int | None = None,
) -> list[Mapping]:
    """Get mappings, by the course's title.

    :param start: How many to leave out.
    :param limit: How many to get. ``None``: all.
    """
    query = sa.select(Mapping).where(Mapping.tenant == tenant)
    query = query.order_by(Mapping.course_title, Mapping.id)
    return list(session.scalars(query.offset(start).limit(limit)))


def mapped_courses(session: Session, tenant: str) -> set[tuple[str, str]]:
    """Get the kinds and ids of the courses that are mapped."""
    query = sa.select(Mapping.kind, Mapping.course_id)
    found = session.execute(query.where(Mapping.tenant == tenant))
    return {(kind, course_id) for kind, course_id in found}


def titles(
    session: Session, tenant: str, courses: cabc.Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Get the stored titles of those of some courses that are mapped."""
    found = session.execute(
        sa.select(Mapping.kind, Mapping.course_id, Mapping.course_title).where(
            Mapping.tenant == tenant,
            Mapping.course_id.in_({course_id for _, course_id in courses}),
        )
    )
    return {
        (kind, course_id): title
        for kind, course_id, title in found
        if (kind, course_id) in courses
    }


def get_mapping(session: Session, tenant: str, mapping_id: int) -> Mapping | None:
    """Get one mapping."""
    this = (Mapping.id == mapping_id, Mapping.tenant == tenant)
    return session.scalars(sa.select(Mapping).where(*this)).one_or_none()


def get_mapping_of(
    session: Session, tenant: str, kind: str, course_id: str
) -> Mapping | None:
    """Get the mapping of a course."""
    this = (Mapping.kind == kind, Mapping.course_id == course_id)
    query = sa.select(Mapping).where(Mapping.tenant == tenant, *this)
    return session.scalars(query).one_or_none()


def course_of(mapping: Mapping) -> Course:
    """Get the course of a mapping, with the title that it had when it was mapped."""
    kind = t.cast(Kind, mapping.kind)
    return Course(id=mapping.course_id, title=mapping.course_title, kind=kind)


def add_mapping(
    state: Community,
    course: Course,
    template_id: str,
    *,
    undo: bool = False,
    by: str | None = None,
) -> Mapping:
    """Map a course to a badge template.

    :param undo: Whether this takes back a removal: what was cancelled by it is due
        again. Where that is much, a worker sees to it: see
        :func:`.retrying.bring_back`.
    :param by: Who does it, for :func:`.audit.note`.
    :raises NotConnected: There is no connection.
    :raises UnknownTemplate: No such active template.
    :raises AlreadyMapped: The course has a badge.
    """
    with _unique(state, course):
        mapping = _add(state.engine, state.tenant, course, template_id, undo, by)

    if undo:
        notifier.notify(state)

        if in_session(state.engine, retrying.brought_back, state.tenant):
            notifier.ask_for_undo(state)

    return mapping


@in_transaction
def _add(
    connection: sa.Connection,
    tenant: str,
    course: Course,
    template_id: str,
    undo: bool,
    by: str | None,
) -> Mapping:
    if undo and not gates.lock(connection, tenant):
        raise NotConnected

    with orm.Session(connection) as session:
        template = _active_template(session, tenant, template_id)
        removed = _last_removed(session, tenant, course) if undo else None
        options = removed.options if removed is not None else None
        mapping = Mapping(
            tenant=tenant,
            kind=course.kind,
            course_id=course.id,
            course_title=clean(course.title, 500),
            template=template,
            created_at=clock.now(connection),
            options=options,
            again=Options.read(options).again or None,
        )
        session.add(mapping)
        session.flush()

    if removed is not None:
        now = clock.now(connection)
        retrying.bring_back(connection, tenant, course, removed.removed_at, now)

    _note(connection, tenant, by, "undo" if undo else "map", course, template)
    return mapping


def _last_removed(
    session: orm.Session, tenant: str, course: Course
) -> RemovedMapping | None:
    return session.scalars(
        sa.select(RemovedMapping)
        .where(
            RemovedMapping.tenant == tenant,
            RemovedMapping.kind == course.kind,
            RemovedMapping.course_id == course.id,
        )
        .order_by(RemovedMapping.removed_at.desc(), RemovedMapping.id.desc())
        .limit(1)
    ).first()


def change_mapping(
    state: Community,
    mapping_id: int,
    course: Course,
    template_id: str,
    *,
    by: str | None = None,
) -> Mapping:
    """Map another course, or to another badge template. Badges that wait, and were
    not perhaps issued already, become the new one when their turn comes.

    :param by: Who does it, for :func:`.audit.note`.
    :raises UnknownMapping: It was removed.
    :raises NotConnected: There is no connection.
    :raises UnknownTemplate: No such active template.
    :raises AlreadyMapped: The course has another badge.
    """
    with _unique(state, course):
        return _change(state.engine, state.tenant, mapping_id, course, template_id, by)


@in_transaction
def _change(
    connection: sa.Connection,
    tenant: str,
    mapping_id: int,
    course: Course,
    template_id: str,
    by: str | None,
) -> Mapping:
    with orm.Session(connection) as session:
        if (mapping := get_mapping(session, tenant, mapping_id)) is None:
            raise UnknownMapping

        template = _active_template(session, tenant, template_id)
        values: dict[str, t.Any] = {
            "kind": course.kind,
            "course_id": course.id,
            "course_title": clean(course.title, 500),
            "template_id": template.id,
        }

        if (mapping.kind, mapping.course_id) != (course.kind, course.id):
            values["created_at"] = now = clock.now(connection)
            retrying.end_of_course(
                connection, tenant, mapping.kind, mapping.course_id, now
            )

        connection.execute(
            sa.update(Mapping)
            .where(Mapping.id == mapping_id, Mapping.tenant == tenant)
            .values(**values)
        )
        admin.release(connection, tenant, clock.now(connection))
        session.refresh(mapping)

    _note(connection, tenant, by, "change mapping", course, template)
    return mapping


def change_options(
    state: Community, mapping_id: int, options: Options, *, by: str | None = None
) -> Mapping:
    """Change how badges of a mapping are issued. Those that were recorded before keep
    the options of then, until somebody retries them.

    :param by: Who does it, for :func:`.audit.note`.
    :raises UnknownMapping: It was removed.
    """
    return _change_options(state.engine, state.tenant, mapping_id, options, by)


@in_transaction
def _change_options(
    connection: sa.Connection,
    tenant: str,
    mapping_id: int,
    options: Options,
    by: str | None,
) -> Mapping:
    with orm.Session(connection) as session:
        if (mapping := get_mapping(session, tenant, mapping_id)) is None:
            raise UnknownMapping

        connection.execute(
            sa.update(Mapping)
            .where(Mapping.id == mapping_id, Mapping.tenant == tenant)
            .values(options=options.stored(), again=options.again or None)
        )
        admin.release(connection, tenant, clock.now(connection))
        session.refresh(mapping)

    course = course_of(mapping)
    _note(connection, tenant, by, "change options", course, mapping.template)
    return mapping


def remove_mapping(
    state: Community, mapping_id: int, *, by: str | None = None
) -> Mapping | None:
    """Remove a mapping. Badges already issued are kept; those that wait are cancelled
    when their turn comes.

    :param by: Who does it, for :func:`.audit.note`.
    :return: The removed mapping, or ``None`` if there was none.
    """
    return _remove(state.engine, state.tenant, mapping_id, by)


@in_transaction
def _remove(
    connection: sa.Connection, tenant: str, mapping_id: int, by: str | None
) -> Mapping | None:
    # What workers cancel is cancelled after this, or not at all.
    gates.lock(connection, tenant)

    with orm.Session(connection) as session:
        if (mapping := get_mapping(session, tenant, mapping_id)) is None:
            return None

    connection.execute(
        sa.delete(Mapping).where(Mapping.id == mapping_id, Mapping.tenant == tenant)
    )
    now = clock.now(connection)
    retrying.end_of_course(connection, tenant, mapping.kind, mapping.course_id, now)
    connection.execute(
        sa.delete(RemovedMapping).where(
            sa.or_(
                # SQLite gives the number of the last row once more, to whomever.
                RemovedMapping.id == mapping_id,
                sa.and_(
                    RemovedMapping.tenant == tenant,
                    RemovedMapping.removed_at < now - UNDO_TIME,
                ),
            )
        )
    )
    connection.execute(
        sa.insert(RemovedMapping).values(
            id=mapping_id,
            tenant=tenant,
            kind=mapping.kind,
            course_id=mapping.course_id,
            template_id=mapping.template_id,
            options=mapping.options,
            removed_at=now,
        )
    )
    _note(
        connection, tenant, by, "remove mapping", course_of(mapping), mapping.template
    )
    return mapping


def get_removed(
    session: Session, tenant: str, mapping_id: int
) -> RemovedMapping | None:
    """Get a mapping that was removed, for as long as that can be undone."""
    now = clock.now(session.connection())
    return session.scalars(
        sa.select(RemovedMapping).where(
            RemovedMapping.id == mapping_id,
            RemovedMapping.tenant == tenant,
            RemovedMapping.removed_at > now - UNDO_TIME,
        )
    ).one_or_none()


def _active_template(session: orm.Session, tenant: str, template_id: str) -> Template:
    if get(session, tenant) is None:
        raise NotConnected

    template = session.get(Template, (tenant, template_id))

    if template is None or not template.active:
        raise UnknownTemplate

    return template


def _note(
    connection: sa.Connection,
    tenant: str,
    by: str | None,
    action: str,
    course: Course,
    template: Template,
) -> None:
    title = clean(course.title, 500) or course.id
    audit.note(connection, tenant, by, action, f"{title} → {template.name}")


@contextlib.contextmanager
def _unique(state: Community, course: Course) -> cabc.Iterator[None]:
    # The unique constraint decides, also between two admins at the same time.
    try:
        yield
    except sa.exc.IntegrityError:
        badge_name = in_session(state.engine, _badge_of, state.tenant, course)

        if badge_name is None:
            raise NotConnected from None

        raise AlreadyMapped(badge_name) from None


def _badge_of(session: orm.Session, tenant: str, course: Course) -> str | None:
    """Get the name of the badge that a course is mapped to."""
    return session.scalar(
        sa.select(Template.name)
        .join_from(Mapping, Mapping.template)
        .where(
            Mapping.tenant == tenant,
            Mapping.kind == course.kind,
            Mapping.course_id == course.id,
        )
    )
