"""A database that comes from a backup, or that is a copy of one in use elsewhere."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from ..ledger import audit
from ..ledger import clock
from ..ledger.transaction import in_transaction
from ..models import Account
from ..models import Installation


@in_transaction
def note_restored(
    connection: sa.Connection, *, copy: bool = False, by: str | None = None
) -> None:
    """Note that the ledger may lack what was issued, of all communities: from now on
    each badge is looked up before its first request. A badge of the member that no row
    has is taken for it.

    :param copy: Whether the original is in use elsewhere: nothing is issued until this
        is called without it.
    :param by: Who does it, for :func:`.audit.note`.
    """
    values = {"restored_at": clock.now(connection), "is_copy": copy}

    installation = sa.update(Installation).where(Installation.id == 1)

    if not connection.execute(installation.values(**values)).rowcount:
        connection.execute(
            sa.insert(Installation).values(id=1, key=secrets.token_hex(16), **values)
        )

    # A worker that runs already does not know it: it may begin nothing more.
    for tenant in connection.scalars(sa.select(Account.tenant)).all():
        generation = secrets.token_hex(16)
        account = sa.update(Account).where(Account.tenant == tenant)
        connection.execute(account.values(generation=generation))
        audit.note(connection, tenant, by, "copy" if copy else "restored")
