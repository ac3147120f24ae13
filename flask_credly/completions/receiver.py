"""Receives completions, and breaks no request of the host's with one."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask import current_app
from flask import Flask
from flask import has_app_context
from sqlalchemy import orm

from .. import interruption
from ..catalog import Completion
from ..signals import course_completed
from ..state import AppState
from . import host_transaction
from .lost import note_lost
from .outcome import Outcome
from .reading import app_of
from .reading import read
from .recording import record
from .recording import Settled
from .recording import TransactionEnded


def listen() -> None:
    """Receive what is sent, by one receiver for all apps."""
    # Found through the sender: blinker would forget a function made here, and a proxy
    # of the app is not the sender it compares with.
    course_completed.connect(receive)


def receive(sender: t.Any, **given: t.Any) -> None:
    """Record a completion. What goes wrong in that is logged and counted, and breaks no
    request of the host's. Two things rise all the same:

    - an error that has ended the host's transaction: what the host wrote before is
      gone, and it has to know;
    - what the host itself throws into our work, of whichever class (a time-out of
      gevent, gunicorn, Celery or RQ, Ctrl-C): see :func:`.interruption.find`. Its
      transaction is then committed no more if a statement of ours was cut short in it.
    """
    app: Flask | None = None
    try:
        if (app := app_of(sender)) is not None:
            _record(app, given)
    except Settled as e:
        raise t.cast(BaseException, e.__cause__) from None
    except BaseException as e:
        note_lost(app, given)

        if found := interruption.find(e):
            raise found from None


def _record(app: Flask, given: dict[str, t.Any]) -> None:
    if has_app_context() and current_app._get_current_object() is app:  # type: ignore[attr-defined]
        _record_in_context(app.extensions["credly"], given)
    else:
        with app.app_context():
            _record_in_context(app.extensions["credly"], given)


def _record_in_context(state: AppState, given: dict[str, t.Any]) -> None:
    session = given.get("session")
    host = session if session is not None else state.session
    host = host() if isinstance(host, orm.scoped_session) else host

    if not isinstance(host, orm.Session):
        raise TypeError(
            "session must be a SQLAlchemy Session, such as db.session, not"
            f" {type(host).__name__}."
        )

    completion = _read(state, given, host)
    state.check_ids(member_id=completion.member.id, course_id=completion.course_id)
    engine: sa.Engine | sa.Connection = state.engine
    record(
        engine.engine,
        host,
        completion,
        Outcome(state, completion),
        # In a suite of the host's, a connection may stand in the engine's place. What
        # is written is to go with it.
        join=session is not None or isinstance(engine, sa.Connection),
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
