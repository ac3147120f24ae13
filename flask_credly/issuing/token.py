"""One access token for all workers, cached in the connection's row, sealed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import time
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from .. import keys
from ..errors import CredlyError
from ..errors import SecretUnreadable
from ..errors import Unauthorized
from ..errors import Unavailable
from ..ledger import clock
from ..ledger import gates
from ..ledger.transaction import connect
from ..ledger.transaction import in_transaction
from ..models import Account
from ..secret import Secret
from ..state import AppState
from ..state import Community

if t.TYPE_CHECKING:
    from ..credly import Client
    from ..ledger.decide import Answer

T = t.TypeVar("T")

CHANGED = "The connection has changed."

EARLY = 90
"""Seconds before its end at which a token is renewed."""


def open_client(state: AppState, organization_id: str) -> Client:
    """Open a client for the API. Close it after use."""
    # Loaded here: a web request that does not ask Credly needs no HTTP library.
    from ..credly import Client

    return Client(
        state.settings.api_url, organization_id, timeout=state.settings.timeout
    )


@dataclasses.dataclass(frozen=True)
class SharedToken:
    """The token in force.

    :param version: Grows with every token of the connection.
    """

    value: Secret
    version: int


def get_token(state: Community, generation: str, *, rejected: int = 0) -> SharedToken:
    """Get the cached token, or fetch the next one if it is about to end.

    Of several workers one fetches and the others wait for it: a herd of fetches
    could run into a rate limit, or revoke each other's tokens.

    :param rejected: A version that the API did not accept: get a later one.
    :raises SecretUnreadable: The Client Secret cannot be decrypted.
    :raises ConnectionExpired: The credentials are no longer good.
    :raises RateLimited: The token endpoint answered 429.
    :raises Unavailable: The token endpoint cannot be asked, or the integration was
        removed or reconnected in the meantime.
    """
    patience = time.monotonic() + 2 * state.settings.timeout + 5

    while True:
        row, now = _read(state, generation)
        # First: as long as a cached token opens, a lost key would go unnoticed.
        config, organization_id = state.app.config, row.organization_id
        secret = keys.unseal(
            config, row.client_secret, organization_id, "client_secret"
        )

        if row.token and row.token_version > rejected and row.token_expires_at:
            if row.token_expires_at - dt.timedelta(seconds=EARLY) > now:
                # A process whose keys are not the same yet may have sealed it. The
                # Client Secret, if that opens, gets another.
                with contextlib.suppress(SecretUnreadable):
                    token = keys.unseal(config, row.token, organization_id, "token")
                    return SharedToken(token, row.token_version)

        if _take_fetch(state.engine, row, now, state.settings.timeout + 5):
            return _fetch(state, row, secret)

        if time.monotonic() > patience:
            raise Unavailable("Another worker is fetching an access token.")

        time.sleep(0.1)


def with_token(state: Community, generation: str, send: t.Callable[[Secret], T]) -> T:
    """Send a request with the token in force, and once more with the next one if that
    is not accepted.

    :raises Unauthorized: Neither is.
    :raises Unavailable: Something in Credly's place has refused them.
    :raises CredlyError: See :func:`get_token`, and what is sent.
    """
    token = get_token(state, generation)

    try:
        return send(token.value)
    except Unauthorized:
        token = get_token(state, generation, rejected=token.version)

    try:
        return send(token.value)
    except Unauthorized as e:
        if e.foreign:
            raise Unavailable(e.detail, status=e.status, foreign=True) from None

        raise


class TokenHolder:
    """The token that a drain uses, and what became of those before it.

    :param generation: Of the account.
    """

    def __init__(self, state: Community, generation: str) -> None:
        self._state = state
        self._generation = generation
        self._token: SharedToken | None = None
        self._rejected: int | None = None

    def get(self) -> SharedToken:
        """Get the one to use next.

        :raises CredlyError: See :func:`get_token`.
        """
        if self._token is None:
            rejected = self._rejected or 0
            self._token = get_token(self._state, self._generation, rejected=rejected)

        return self._token

    def judge(self, refused: SharedToken, error: Unauthorized) -> Answer:
        """Take a refused token for what it is: an old one is replaced and the request
        repeated; the credentials have expired if a fresh one is refused as well.
        """
        if self._token is not None and refused.version < self._token.version:
            return "not sent"

        if self._rejected is None:
            self._rejected = refused.version
            self._token = None
            return "not sent"

        if refused.version <= self._rejected:
            return "not sent"

        # A firewall's page says nothing about the credentials.
        return "unavailable" if error.foreign else "unauthorized"


def _read(state: Community, generation: str) -> tuple[Account, dt.datetime]:
    with connect(state.engine) as connection, orm.Session(connection) as session:
        now = clock.now(connection)
        row = session.scalars(
            sa.select(Account).where(*gates.this(state.tenant, generation))
        ).one_or_none()

    if row is None:
        raise Unavailable(CHANGED)

    return row, now


def _this(row: Account) -> sa.Update:
    return sa.update(Account).where(
        *gates.this(row.tenant, row.generation),
        Account.token_version == row.token_version,
    )


@in_transaction
def _take_fetch(
    connection: sa.Connection, row: Account, now: dt.datetime, seconds: float
) -> bool:
    free = sa.or_(Account.token_fetch_until.is_(None), Account.token_fetch_until < now)
    until = now + dt.timedelta(seconds=seconds)
    return bool(
        connection.execute(
            _this(row).where(free).values(token_fetch_until=until)
        ).rowcount
    )


@in_transaction
def _leave_fetch(connection: sa.Connection, row: Account) -> None:
    connection.execute(_this(row).values(token_fetch_until=None))


@in_transaction
def _save(connection: sa.Connection, row: Account, sealed: str, seconds: int) -> None:
    connection.execute(
        _this(row).values(
            token=sealed,
            token_version=row.token_version + 1,
            token_expires_at=clock.now(connection) + dt.timedelta(seconds=seconds),
            token_fetch_until=None,
        )
    )


def _fetch(state: Community, row: Account, secret: str) -> SharedToken:
    # Loaded here: a web request asks for a new token only in a form's answer.
    from ..credly import fetch_token

    try:
        token = fetch_token(
            state.settings.token_url,
            row.client_id,
            secret,
            timeout=state.settings.timeout,
        )
    except CredlyError:
        _leave_fetch(state.engine, row)
        raise

    sealed = keys.seal(state.app.config, token.value, row.organization_id, "token")
    _save(state.engine, row, sealed, token.expires_in)
    return SharedToken(token.value, row.token_version + 1)
