"""Connecting: verified before anything is saved."""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from .. import keys
from ..errors import ConnectionExpired
from ..errors import CredlyError
from ..errors import Refused
from ..errors import SecretUnreadable
from ..errors import Unauthorized
from ..issuing import announce
from ..issuing import notifier
from ..issuing.token import open_client
from ..issuing.token import with_token
from ..ledger import audit
from ..ledger import clock
from ..ledger import gates
from ..ledger import polls
from ..ledger import removing
from ..ledger import runs
from ..ledger.audit import TooOften as TooOften
from ..ledger.paging import Session
from ..ledger.runs import Run
from ..ledger.transaction import in_session
from ..ledger.transaction import in_transaction
from ..ledger.transaction import Unfit as Unfit
from ..models import Account
from ..models import Installation
from ..models import Mapping
from ..models import RemovedMapping
from ..models import Template
from ..models import ToCheck
from ..secret import Secret
from ..state import Community
from . import templates

if t.TYPE_CHECKING:
    from ..credly import Client
    from ..credly import TemplatePage
    from ..credly import Token

INLINE_PAGES = 5
"""Pages of 50 templates that are loaded while the admin waits."""


class NotVerified(CredlyError):
    """Credly refused the Organization ID or the credentials.

    :param let_in: Whether it took the credentials, and refused the organization.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, let_in: bool = False
    ) -> None:
        super().__init__(detail, status=status)
        self.let_in = let_in


class NotAccepted(NotVerified):
    """Credly refused the credentials themselves, and not only what was asked for."""


class CouldNotVerify(CredlyError):
    """Credly could not be asked. Nothing was learned about the credentials."""


class OtherOrganization(Exception):
    """Connected to another organization: Remove comes first."""


class NotConnected(Exception):
    """There is no connection."""


class StillRemoving(Exception):
    """What an earlier connection has left is still being removed: that comes first.

    :param removal: How far that is.
    """

    def __init__(self, removal: removing.Removal) -> None:
        super().__init__(removal)
        self.removal = removal


class NoKey(Exception):
    """There is no key to encrypt the Client Secret with."""


@dataclasses.dataclass(frozen=True)
class Connected:
    """A new connection.

    :param templates: How many badge templates were loaded.
    :param complete: Whether these are all; the rest is loaded in the background.
    """

    templates: int
    complete: bool


def get(session: Session, tenant: str) -> Account | None:
    """Get a community's account."""
    query = sa.select(Account).where(Account.tenant == tenant)
    return session.scalars(query).one_or_none()


def connect(
    state: Community,
    *,
    organization_id: str,
    client_id: str,
    client_secret: str,
    by: str | None = None,
) -> Connected:
    """Verify the credentials, save them, and load the badge templates.

    For an organization that is connected already the mappings and the log are kept,
    and what was parked is released.

    :param by: Who does it, for :func:`.audit.note`. Admins are limited: see
        :data:`.audit.LIMITS`.
    :raises TooOften: It was tried too often.
    :raises NoKey: Neither ``CREDLY_ENCRYPTION_KEYS`` nor ``SECRET_KEY`` is set.
    :raises OtherOrganization: Another one is connected.
    :raises StillRemoving: An earlier connection is still being removed.
    :raises NotVerified: Credly refused the credentials.
    :raises CouldNotVerify: Credly could not be asked.
    :raises Unfit: The database is set up in a way that nothing would work.
    """
    organization_id = organization_id.lower()
    client_secret = Secret(client_secret)
    gate = gates.read(state.engine, state.tenant)
    again = gate is not None and gate.organization_id == organization_id

    with audit.asking(
        state.engine,
        state.tenant,
        by,
        "reconnect" if again else "connect",
        organization_id,
        refusals=(NotVerified, OtherOrganization, StillRemoving, NoKey, Unfit),
    ) as entry_id:
        if not keys.can_seal(state.app.config):
            raise NoKey

        if gate is not None and not again:
            raise OtherOrganization

        going_on = in_session(state.engine, removing.going_on, state.tenant)

        if going_on is not None:
            raise StillRemoving(going_on)

        return _connect(state, organization_id, client_id, client_secret, entry_id)


def _connect(
    state: Community,
    organization_id: str,
    client_id: str,
    client_secret: str,
    entry_id: int | None,
) -> Connected:
    with open_client(state, organization_id) as client:
        token, first = _verify(state, client, client_id, client_secret)
        config = state.app.config
        values = {
            "tenant": state.tenant,
            "organization_id": organization_id,
            "client_id": client_id,
            "client_secret": keys.seal(
                config, client_secret, organization_id, "client_secret"
            ),
            "token": keys.seal(config, token.value, organization_id, "token"),
            "generation": secrets.token_hex(16),
        }
        _save(state.engine, values, token.expires_in, entry_id)
        complete = _load_templates(state, client, token, values["generation"], first)

    notifier.notify(state)
    return Connected(templates.count(state), complete)


def check(state: Community, *, by: str | None = None) -> None:
    """Verify the stored credentials. The connection is in force again if they are
    good, and has expired if Credly refuses them.

    :param by: Who does it, for :func:`.audit.note`. Admins are limited: see
        :data:`.audit.LIMITS`.
    :raises TooOften: It was tried too often.
    :raises NotConnected: There is no connection.
    :raises SecretUnreadable: They cannot be decrypted, and Credly was not asked.
    :raises NotVerified: Credly refused them.
    :raises CouldNotVerify: Credly could not be asked.
    """
    if (gate := gates.read(state.engine, state.tenant)) is None:
        raise NotConnected

    with audit.asking(state.engine, state.tenant, by, "test", refusals=(NotVerified,)):
        _check(state, gate)


def _check(state: Community, gate: gates.Gate) -> None:
    try:
        verify(state, gate)
    except NotVerified as e:
        _note_check(state.engine, gate)

        if isinstance(e, NotAccepted):
            announce.expired(state, gate.generation, e)

        raise

    _note_check(state.engine, gate, expired=False)
    notifier.notify(state)


def verify(state: Community, gate: gates.Gate) -> dt.datetime | None:
    """Ask Credly whether the stored credentials are good. Changes nothing but the
    cached token.

    :return: The time on Credly's clock, if its answer says.
    :raises SecretUnreadable: They cannot be decrypted, and Credly was not asked.
    :raises NotVerified: Credly refused them.
    :raises CouldNotVerify: Credly could not be asked.
    """
    with open_client(state, gate.organization_id) as client:
        try:
            with_token(state, gate.generation, lambda token: client.templates(token, 1))
        except SecretUnreadable:
            raise
        except (Unauthorized, ConnectionExpired) as e:
            raise NotAccepted(e.detail, status=e.status) from None
        except Refused as e:
            raise NotVerified(e.detail, status=e.status) from None
        except CredlyError as e:
            raise CouldNotVerify(e.detail, status=e.status) from None

        return client.answered_at()


@in_transaction
def _note_check(
    connection: sa.Connection, gate: gates.Gate, /, **changes: bool
) -> None:
    connection.execute(
        sa.update(Account)
        .where(*gates.this(gate.tenant, gate.generation))
        .values(checked_at=clock.now(connection), **changes)
    )


def remove(state: Community, *, by: str | None = None) -> bool:
    """Delete the credentials, the templates and the mappings, so that nothing more is
    recorded or sent, and then the error log and what waits. If these are many, a worker
    does the latter: see :mod:`.ledger.removing`.

    The ledger of what was issued stays, without personal data, so that a reconnect
    does not issue it again; so does the audit trail.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether there was a connection.
    """
    removed, run = _remove(state.engine, state.tenant, by)

    if run is not None and removing.step(state.engine, run) != "over":
        runs.leave(state.engine, run)
        run = None

    if removed and run is None:
        notifier.ask_for_undo(state)

    return removed


@in_transaction
def _remove(
    connection: sa.Connection, tenant: str, by: str | None
) -> tuple[bool, Run | None]:
    # First: whoever begins a run, connects or writes into the log takes it too.
    if not gates.lock(connection, tenant):
        return False, None

    organization_id = connection.scalar(
        sa.select(Account.organization_id).where(Account.tenant == tenant)
    )
    audit.note(connection, tenant, by, "remove", organization_id or "")
    run = removing.begin(connection, tenant, clock.now(connection))

    # Not left to cascades: SQLite has them switched off by default.
    for table in (RemovedMapping, ToCheck, Mapping, Template, Account):
        connection.execute(sa.delete(table).where(table.tenant == tenant))

    return True, run


def _verify(
    state: Community, client: Client, client_id: str, client_secret: str
) -> tuple[Token, TemplatePage]:
    from ..credly import fetch_token

    token = None

    try:
        token = fetch_token(
            state.settings.token_url,
            client_id,
            client_secret,
            timeout=state.settings.timeout,
        )
        # There is no scope for reading the organization itself. Its templates prove
        # that the token is for it.
        return token, client.templates(token.value, 1)
    except CredlyError as e:
        refused = isinstance(e, (Refused, Unauthorized, ConnectionExpired))
        # The latter of the token endpoint.
        refused = refused or e.status in (404, 422)

        if refused and not e.foreign:
            raise NotVerified(
                e.detail, status=e.status, let_in=token is not None
            ) from None

        raise CouldNotVerify(e.detail, status=e.status) from None


@in_transaction
def _save(
    connection: sa.Connection,
    values: dict[str, t.Any],
    lifetime: int,
    entry_id: int | None,
) -> None:
    now = clock.now(connection)
    values = {
        **values,
        "connected_at": now,
        "checked_at": now,
        "expired": False,
        "paused_until": None,
        "pause_reason": None,
        "keyless_until": None,
        "failures": 0,
        "batch_refused_at": None,
        # What became of the badges of an earlier connection.
        "poll_due_at": now if polls.has_issued(connection, values["tenant"]) else None,
        "token_version": 1,
        "token_expires_at": now + dt.timedelta(seconds=lifetime),
        "token_fetch_until": None,
    }
    replaced = connection.execute(
        sa.update(Account)
        .where(
            Account.tenant == values["tenant"],
            Account.organization_id == values["organization_id"],
        )
        .values(**values)
    ).rowcount

    if not replaced:
        try:
            connection.execute(sa.insert(Account).values(**values))
        except sa.exc.IntegrityError:
            raise OtherOrganization from None

        # Asked once more: a removal may have begun while Credly answered.
        going_on = removing.going_on(connection, values["tenant"], lock=True)

        if going_on is not None:
            raise StillRemoving(going_on)

    # As everything that is done with it begins.
    if not gates.lock(connection, values["tenant"]):
        raise Unfit

    if connection.scalar(sa.select(Installation.key)) is None:
        connection.execute(
            sa.insert(Installation).values(id=1, key=secrets.token_hex(16))
        )

    audit.settle(connection, values["tenant"], entry_id, "ok")


def _load_templates(
    state: Community, client: Client, token: Token, generation: str, first: TemplatePage
) -> bool:
    try:
        complete = templates.load(
            state, client, token.value, generation, first=first, pages=INLINE_PAGES
        )
    except CredlyError:
        complete = False

    if not complete:
        templates.make_due(state.engine, state.tenant, generation)
        notifier.ask_for_sync(state)

    return complete
