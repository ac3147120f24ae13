"""Receives what the host sends, and breaks no request of the host's with it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import typing as t

import sqlalchemy as sa
from flask import current_app
from flask import Flask
from flask import has_app_context
from sqlalchemy import orm

from .. import interruption
from ..catalog import Completion
from ..ledger.insert import insert
from ..signals import completion_withdrawn
from ..signals import course_completed
from ..state import AppState
from . import host_transaction
from .lost import note_lost
from .lost import note_lost_withdrawal
from .outcome import OfCompletion
from .outcome import OfWithdrawal
from .outcome import Outcome
from .reading import app_of
from .reading import read
from .reading import read_withdrawn
from .recording import record
from .recording import Settled
from .recording import TransactionEnded
from .recording import Write


def listen() -> None:
    """Receive what is sent, by one receiver for all apps."""
    # Found through the sender: blinker would forget a function made here, and a proxy
    # of the app is not the sender it compares with.
    course_completed.connect(receive)
    completion_withdrawn.connect(receive_withdrawn)


def receive(sender: t.Any, **given: t.Any) -> None:
    """Record a completion. What goes wrong in that is logged and counted, and breaks no
    request of the host's. Two things rise all the same:

    - an error that has ended the host's transaction: what the host wrote before is
      gone, and it has to know;
    - what the host itself throws into our work, of whichever class (a time-out of
      gevent, gunicorn, Celery or RQ, Ctrl-C): see :func:`.interruption.find`. Its
      transaction is then committed no more if a statement of ours was cut short in it.
    """
    _receive(sender, given, _record, note_lost)


def receive_withdrawn(sender: t.Any, **given: t.Any) -> None:
    """Record that a completion was withdrawn. What rises is as for a completion."""
    _receive(
        sender, given, _record_withdrawn, lambda app, given: note_lost_withdrawal(given)
    )


Given = dict[str, t.Any]


def _receive(
    sender: t.Any,
    given: Given,
    work: cabc.Callable[[AppState, Given], None],
    note_lost: cabc.Callable[[Flask | None, Given], None],
) -> None:
    app: Flask | None = None
    try:
        if (app := app_of(sender)) is not None:
            with _context_of(app):
                work(app.extensions["credly"], given)
    except Settled as e:
        raise t.cast(BaseException, e.__cause__) from None
    except BaseException as e:
        note_lost(app, given)

        if found := interruption.find(e):
            raise found from None


def _context_of(app: Flask) -> t.ContextManager[object]:
    if has_app_context() and current_app._get_current_object() is app:  # type: ignore[attr-defined]
        return contextlib.nullcontext()

    return app.app_context()


def _record(state: AppState, given: Given) -> None:
    host = _host_session(state, given)
    completion = _read(state, given, host)
    state.check_ids(member_id=completion.member.id, course_id=completion.course_id)
    outcome = OfCompletion(state, completion)
    _write(state, given, host, lambda it: insert(it, completion), outcome)


def _record_withdrawn(state: AppState, given: Given) -> None:
    from ..ledger.withdrawals import withdraw

    host = _host_session(state, given)
    withdrawal = read_withdrawn(state, given)
    state.check_ids(member_id=withdrawal.member_id, course_id=withdrawal.course_id)
    outcome = OfWithdrawal(state, withdrawal)
    _write(state, given, host, lambda it: withdraw(it, withdrawal), outcome)


def _host_session(state: AppState, given: Given) -> orm.Session:
    session = given.get("session")
    host = session if session is not None else state.session
    host = host() if isinstance(host, orm.scoped_session) else host

    if not isinstance(host, orm.Session):
        raise TypeError(
            "session must be a SQLAlchemy Session, such as db.session, not"
            f" {type(host).__name__}."
        )

    return host


def _write(
    state: AppState, given: Given, host: orm.Session, write: Write, outcome: Outcome
) -> None:
    engine: sa.Engine | sa.Connection = state.engine
    record(
        engine.engine,
        host,
        write,
        outcome,
        # In a suite of the host's, a connection may stand in the engine's place. What
        # is written is to go with it.
        join=given.get("session") is not None or isinstance(engine, sa.Connection),
    )


def _read(state: AppState, given: dict[str, t.Any], host: orm.Session) -> Completion:
    """Check what was sent. To read it may ask the host's database, as where the member
    is a row that has expired.

    :raises TransactionEnded: That has ended the host's transaction.
    """
    try:
        return read(state, given, raises=(sa.exc.DBAPIError,))
    except sa.exc.DBAPIError as e:
        joined = host_transaction.to_join(host, state.engine)

        if joined is None or not host_transaction.was_ended(joined, e):
            return read(state, given)

        host_transaction.refuse_commit(host, joined.connection)
        raise TransactionEnded from e
