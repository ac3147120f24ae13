"""What tests do about a database besides what an application does."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from conftest import Host

from flask_credly.models import Account

servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


def open_again(host: Host) -> None:
    """Let the time pass until no pause is left, a dead worker holds nothing, and
    everything is due.
    """
    past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    host.db.session.rollback()
    host.db.session.execute(
        sa.update(Account)
        .where(Account.paused_until.is_not(None))
        .values(paused_until=past)
    )
    host.db.session.execute(sa.update(Account).values(pace_held_until=None))
    host.db.session.commit()
    host.make_due()
