"""Encrypting once more what is stored, with the newest key."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from .. import keys
from ..errors import SecretUnreadable
from ..ledger import audit
from ..ledger import gates
from ..ledger.transaction import in_transaction
from ..models import Account
from ..state import Community

_SEALED = {"client_secret": "Client Secret", "token": "access token"}
"""The columns with encrypted values, and what they hold."""


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What became of the encrypted values, by what they hold.

    :param rotated: Encrypted once more: they were on an older key.
    :param current: On the newest key already.
    :param unreadable: No configured key decrypts them.
    """

    rotated: tuple[str, ...]
    current: tuple[str, ...]
    unreadable: tuple[str, ...]


def rotate_keys(
    state: Community, *, dry_run: bool = False, by: str | None = None
) -> Rotation:
    """Encrypt what is stored with the newest key, in one transaction. A second time
    changes nothing.

    Where anything is unreadable, nothing is changed.

    :param dry_run: Change nothing in any case, only look.
    :param by: Who does it, for :func:`.audit.note`.
    """
    return _rotate(state.engine, state.tenant, state.app.config, dry_run, by)


@in_transaction
def _rotate(
    connection: sa.Connection,
    tenant: str,
    config: keys.Config,
    dry_run: bool,
    by: str | None,
) -> Rotation:
    if not dry_run:
        # First, for the lock: a worker may save a new token at this moment.
        gates.lock(connection, tenant)

    columns = [getattr(Account, name) for name in _SEALED]
    query = sa.select(Account.organization_id, *columns)
    row = connection.execute(query.where(Account.tenant == tenant)).one_or_none()

    if row is None:
        return Rotation((), (), ())

    values: dict[str, str] = {}
    current, unreadable = [], []

    for name, what in _SEALED.items():
        if (sealed := getattr(row, name)) is None:
            continue

        place = (row.organization_id, name)

        try:
            value = keys.unseal(config, sealed, *place)
        except SecretUnreadable:
            unreadable.append(what)
            continue

        if keys.is_current(config, sealed):
            current.append(what)
        else:
            values[name] = keys.seal(config, value, *place)

    if values and not unreadable and not dry_run:
        connection.execute(
            sa.update(Account).where(Account.tenant == tenant).values(**values)
        )
        audit.note(connection, tenant, by, "rotate keys")

    rotated = tuple(_SEALED[name] for name in values)
    return Rotation(rotated, tuple(current), tuple(unreadable))
