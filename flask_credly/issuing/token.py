"""One access token for all workers, cached in the connection's row, sealed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time

import sqlalchemy as sa
from sqlalchemy import orm

from .. import keys
from ..errors import CredlyError
from ..errors import Unavailable
from ..ledger import clock
from ..models import Connection
from ..settings import State

EARLY = 90
"""Seconds before its end at which a token is renewed."""


@dataclasses.dataclass(frozen=True)
class SharedToken:
    """The token in force.

    :param version: Grows with every token of the connection.
    """

    value: str = dataclasses.field(repr=False)
    version: int


def get_token(state: State, generation: str, *, rejected: int = 0) -> SharedToken:
    """Get the cached token, or fetch the next one if it is about to end.

    Of several workers one fetches and the others wait for it: a herd of fetches
    could run into a rate limit, or revoke each other's tokens.

    :param rejected: A version that the API did not accept: get a later one.
    :raises ConnectionExpired: The credentials are no longer good.
    :raises RateLimited: The token endpoint answered 429.
    :raises Unavailable: The token endpoint cannot be asked, or the integration was
        removed or reconnected in the meantime.
    """
    patience = time.monotonic() + 2 * state.settings.timeout + 5

    while True:
        row, now = _read(state, generation)

        if row.token and row.token_version > rejected and row.token_expires_at:
            if row.token_expires_at - dt.timedelta(seconds=EARLY) > now:
                return SharedToken(
                    _unseal(state, row, row.token, "token"), row.token_version
                )

        if _take_fetch(state, row, now):
            return _fetch(state, row)

        if time.monotonic() > patience:
            raise Unavailable("Another worker is fetching an access token.")

        time.sleep(0.1)


def seal_token(state: State, organization_id: str, token: str) -> str:
    """Seal a token for the connection's row."""
    return keys.seal(
        state.app.config, token, context=_context(organization_id, "token")
    )


def seal_secret(state: State, organization_id: str, secret: str) -> str:
    """Seal a Client Secret for the connection's row."""
    return keys.seal(
        state.app.config, secret, context=_context(organization_id, "client_secret")
    )


def unseal_secret(state: State, row: Connection) -> str:
    """Open the stored Client Secret.

    :raises ConnectionExpired: If it cannot be decrypted.
    """
    return _unseal(state, row, row.client_secret, "client_secret")


def _context(organization_id: str, field: str) -> str:
    return f"credly_connection/{organization_id}/{field}"


def _unseal(state: State, row: Connection, sealed: str, field: str) -> str:
    context = _context(row.organization_id, field)
    return keys.unseal(state.app.config, sealed, context=context)


def _read(state: State, generation: str) -> tuple[Connection, dt.datetime]:
    with orm.Session(state.engine) as session:
        now = clock.now(session.connection())
        row = session.scalars(
            sa.select(Connection).where(Connection.generation == generation)
        ).one_or_none()

    if row is None:
        raise Unavailable("The connection was changed in the meantime.")

    return row, now


def _this(row: Connection) -> sa.Update:
    return sa.update(Connection).where(
        Connection.generation == row.generation,
        Connection.token_version == row.token_version,
    )


def _take_fetch(state: State, row: Connection, now: dt.datetime) -> bool:
    seconds = state.settings.timeout + 5

    with state.engine.begin() as connection:
        taken = connection.execute(
            _this(row)
            .where(
                sa.or_(
                    Connection.token_fetch_until.is_(None),
                    Connection.token_fetch_until < now,
                )
            )
            .values(token_fetch_until=now + dt.timedelta(seconds=seconds))
        ).rowcount

    return bool(taken)


def _fetch(state: State, row: Connection) -> SharedToken:
    # Loaded here: a web request asks for a new token only in a form's answer.
    from ..credly import fetch_token

    try:
        token = fetch_token(
            state.settings.token_url,
            row.client_id,
            unseal_secret(state, row),
            timeout=state.settings.timeout,
        )
    except CredlyError:
        with state.engine.begin() as connection:
            connection.execute(_this(row).values(token_fetch_until=None))

        raise

    with state.engine.begin() as connection:
        now = clock.now(connection)
        connection.execute(
            _this(row).values(
                token=seal_token(state, row.organization_id, token.value),
                token_version=row.token_version + 1,
                token_expires_at=now + dt.timedelta(seconds=token.expires_in),
                token_fetch_until=None,
            )
        )

    return SharedToken(token.value, row.token_version + 1)
