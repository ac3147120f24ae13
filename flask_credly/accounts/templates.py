"""Our copy of the organization's badge templates."""

from __future__ import annotations

import collections
import collections.abc as cabc
import typing as t

import sqlalchemy as sa

from ..errors import ConnectionExpired
from ..errors import Unauthorized
from ..errors import Unavailable
from ..issuing import announce
from ..issuing.token import CHANGED
from ..issuing.token import open_client
from ..issuing.token import with_token
from ..ledger import audit
from ..ledger import clock
from ..ledger import gates
from ..ledger.paging import Session
from ..ledger.transaction import in_session
from ..ledger.transaction import in_transaction
from ..ledger.transitions import admin
from ..models import Account
from ..models import Mapping
from ..models import Template
from ..options import EACH
from ..state import Community

if t.TYPE_CHECKING:
    from ..credly import Client
    from ..credly import TemplatePage

_TABLE = Template.__table__

MAX_PAGES = 200
"""Pages of 50 after which a list is taken for endless."""


def _is_active(tenant: str) -> sa.ColumnElement[bool]:
    return sa.and_(Template.tenant == tenant, Template.active.is_(True))


def list_templates(
    session: Session,
    tenant: str,
    *,
    text: str = "",
    limit: int | None = None,
) -> list[Template]:
    """Get the active badge templates, by name.

    :param text: What the name contains.
    :param limit: How many to get. ``None``: all.
    """
    query = sa.select(Template).where(_is_active(tenant))

    if text:
        query = query.where(Template.name.icontains(text, autoescape=True))

    query = query.order_by(Template.name, Template.id).limit(limit)
    return list(session.scalars(query))


def find_twins(
    session: Session, tenant: str, templates: cabc.Collection[Template]
) -> cabc.Set[str]:
    """Get those names of some badge templates that another active one has too, in
    whatever case.
    """
    names = {each.name for each in templates}
    # Not every database knows the small letter of each.
    same = sa.or_(
        Template.name.in_(names),
        sa.func.lower(Template.name).in_({name.lower() for name in names}),
    )
    found = session.scalars(sa.select(Template.name).where(_is_active(tenant), same))
    times = collections.Counter(name.casefold() for name in found)
    return {name for name in names if times[name.casefold()] > 1}


def mapped_and_gone(session: Session, tenant: str) -> list[tuple[str, str, str]]:
    """Get the name of each mapped badge template that is not active any more, with the
    id and the title of its course.
    """
    # They are few, and mappings may be many: SQLite would look at each of these.
    gone = sa.select(Template.id).where(
        Template.tenant == tenant, Template.active.is_(False)
    )
    query = (
        sa.select(Template.name, Mapping.course_id, Mapping.course_title)
        .join(Mapping.template)
        .where(Mapping.tenant == tenant, Mapping.template_id.in_(gone))
        .order_by(Mapping.id)
    )
    return [(name, id_, title) for name, id_, title in session.execute(query)]


def mapped_and_single(session: Session, tenant: str) -> list[tuple[str, str]]:
    """Get the name of each badge template that does not allow duplicates, though its
    mapping gives another badge each time, with the id of the course.
    """
    query = (
        sa.select(Template.name, Mapping.course_id)
        .join(Mapping.template)
        .where(
            Mapping.tenant == tenant,
            Mapping.again == EACH,
            Template.allows_duplicates.is_(False),
        )
        .order_by(Mapping.id)
    )
    return [(name, id_) for name, id_ in session.execute(query)]


def get_template(session: Session, tenant: str, template_id: str) -> Template | None:
    """Get one badge template, active or not."""
    return session.get(Template, (tenant, template_id))


def count_templates(session: Session, tenant: str, text: str = "") -> int:
    """Count the active badge templates whose name contains a text."""
    query = sa.select(sa.func.count()).select_from(Template)
    query = query.where(_is_active(tenant))

    if text:
        query = query.where(Template.name.icontains(text, autoescape=True))

    return session.scalar(query) or 0


def sync_templates(state: Community, *, by: str | None = None) -> int:
    """Load all active badge templates from Credly. Those that are gone are marked as
    no longer active; no mapping is ever deleted.

    :param by: Who does it, for :func:`.audit.note`. Admins are limited: see
        :data:`.audit.LIMITS`.
    :return: How many there are. 0 without a connection.
    :raises TooOften: It was tried too often.
    :raises CredlyError: Credly did not give the whole list. What was loaded is kept.
    """
    if (gate := gates.read(state.engine, state.tenant)) is None:
        return 0

    with audit.asking(state.engine, state.tenant, by, "sync"):
        complete = False

        try:
            complete = _sync(state, gate)
        finally:
            if not complete:
                _note_failure(state.engine, state.tenant, gate.generation)

    return count(state)


def _sync(state: Community, gate: gates.Gate) -> bool:
    with open_client(state, gate.organization_id) as client:
        try:
            return with_token(
                state,
                gate.generation,
                lambda token: load(state, client, token, gate.generation),
            )
        except (Unauthorized, ConnectionExpired) as e:
            announce.expired(state, gate.generation, e)
            raise ConnectionExpired(e.detail, status=e.status) from None


@in_transaction
def make_due(connection: sa.Connection, /, tenant: str, generation: str) -> None:
    """Let the list be loaded by the next job."""
    connection.execute(
        gates.update(tenant, generation).values(
            templates_synced_at=None, templates_failed_at=None
        )
    )


@in_transaction
def _note_failure(connection: sa.Connection, /, tenant: str, generation: str) -> None:
    """Note that the list could not be loaded."""
    now = clock.now(connection)
    connection.execute(gates.update(tenant, generation).values(templates_failed_at=now))


def count(state: Community) -> int:
    """Count the active badge templates."""
    return in_session(state.engine, count_templates, state.tenant)


def load(
    state: Community,
    client: Client,
    token: str,
    generation: str,
    *,
    first: TemplatePage | None = None,
    pages: int = MAX_PAGES,
) -> bool:
    """Load the list, page by page.

    :param generation: Of the connection that the token is for.
    :param first: The first page, if it is at hand.
    :param pages: How many to load at most.
    :return: Whether that was the whole list.
    :raises Unavailable: The connection was changed in the meantime.
    """
    seen: set[str] = set()
    page = first or client.templates(token, 1)

    for number in range(2, pages + 2):
        _save(state.engine, state.tenant, generation, page)
        seen.update(row.id for row in page.rows)

        if page.is_last:
            _mark_missing(state.engine, state.tenant, generation, seen)
            return True

        if number <= pages:
            page = client.templates(token, number)

    return False


@in_transaction
def _save(
    connection: sa.Connection, tenant: str, generation: str, page: TemplatePage
) -> None:
    """Save one page. Writes only what changed."""
    # Two syncs at once would insert the same templates.
    if not gates.lock(connection, tenant, Account.generation == generation):
        raise Unavailable(CHANGED)

    known = {
        row.id: row
        for row in connection.execute(
            sa.select(_TABLE).where(
                Template.tenant == tenant,
                Template.id.in_([row.id for row in page.rows]),
            )
        )
    }
    new, changed = [], []

    for row in page.rows:
        values = {
            "name": row.name,
            "image_url": row.image_url,
            "allows_duplicates": row.allows_duplicates,
            "active": True,
        }
        old = known.get(row.id)

        if old is None:
            new.append({"id": row.id, "tenant": tenant, **values})
        elif any(old._mapping[name] != value for name, value in values.items()):
            changed.append({"p_id": row.id, **values})

    if new:
        connection.execute(sa.insert(Template), new)

    if changed:
        connection.execute(
            sa.update(_TABLE).where(
                Template.tenant == tenant, Template.id == sa.bindparam("p_id")
            ),
            changed,
        )
        admin.release(connection, tenant, clock.now(connection))


@in_transaction
def _mark_missing(
    connection: sa.Connection, tenant: str, generation: str, seen: set[str]
) -> None:
    # First, for the lock.
    now = clock.now(connection)
    synced = gates.update(tenant, generation).values(
        checked_at=now, templates_synced_at=now, templates_failed_at=None
    )

    if not connection.execute(synced).rowcount:
        raise Unavailable(CHANGED)

    stored = connection.scalars(sa.select(Template.id).where(_is_active(tenant)))
    gone = [{"p_id": id_} for id_ in set(stored) - seen]

    if gone:
        connection.execute(
            sa.update(_TABLE)
            .where(Template.tenant == tenant, Template.id == sa.bindparam("p_id"))
            .values(active=False),
            gone,
        )
