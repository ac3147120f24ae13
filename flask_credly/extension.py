"""Wires everything to an application."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import typing as t

from flask import current_app
from flask import Flask
from flask import has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy import orm

from . import keys
from . import signals
from .admin import make_blueprint
from .catalog import clean
from .catalog import Completion
from .catalog import read_completion
from .catalog import read_id
from .cli import make_group
from .issuing import bell
from .issuing import unrecorded
from .ledger import people
from .ledger import record
from .ledger.transaction import hide_parameters
from .models import copy_tables
from .settings import ActorHook
from .settings import AdminHook
from .settings import get_state
from .settings import Hook
from .settings import MemberHook
from .settings import PastHook
from .settings import Settings
from .settings import State
from .settings import warn_of_ignored
from .settings import warn_of_unknown

logger = logging.getLogger("flask_credly")

_NOTES = "credly_notes"

DATABASES = ("sqlite", "postgresql", "mysql", "mariadb")

HookT = t.TypeVar("HookT", bound=t.Callable[..., t.Any])


class Credly:
    """Issues Credly badges to members who complete courses.

    Register the hooks, then call :meth:`init_app`::

        credly = Credly()

        @credly.courses
        def courses():
            return [Course(id="py-101", title="Python 101")]

        @credly.is_admin
        def is_admin():
            return current_user.is_authenticated and current_user.is_admin

        credly.init_app(app)
    """

    def __init__(self) -> None:
        self._courses: Hook | None = None
        self._is_admin: AdminHook | None = None
        self._member: MemberHook | None = None
        self._past_completions: PastHook | None = None
        self._actor: ActorHook | None = None

    def courses(self, hook: HookT) -> HookT:
        """Register the function that lists the courses and learning paths that can be
        mapped, as an iterable of :class:`.Course`. Required.
        """
        self._courses = hook
        return hook

    def is_admin(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor may see and use
        the pages. Required.

        Only ``True`` lets in. A response is sent as the refusal: a redirect to the
        login, for example.
        """
        self._is_admin = hook
        return hook

    def member(self, hook: HookT) -> HookT:
        """Register the function that loads a :class:`.Member` as it is now, by id, or
        ``None``. Asked before a retry, and when a name or address is missing.
        """
        self._member = hook
        return hook

    def past_completions(self, hook: HookT) -> HookT:
        """Register the function that yields who completed a course before, for
        ``flask credly backfill`` and the page that does the same.

        It takes a :class:`.Course` and a time, or ``None``, from which on completions
        are wanted, and yields pairs of a :class:`.Member` and the aware time of the
        completion. The first has to come within 15 minutes: after that, another worker
        takes it that this one has died.
        """
        self._past_completions = hook
        return hook

    def actor(self, hook: HookT) -> HookT:
        """Register the function that names the admin who is at work, for the audit
        trail: a string, or ``None`` where that is not known.
        """
        self._actor = hook
        return hook

    def init_app(self, app: Flask) -> None:
        """Register the extension on an application.

        Call it after the configuration was loaded and ``db.init_app(app)`` was called.

        :raises RuntimeError: If it is called twice, too early, or without a required
            hook.
        :raises ValueError: If a ``CREDLY_*`` value is wrong.
        """
        if "credly" in app.extensions:
            raise RuntimeError("Flask-Credly is already initialized on this app.")

        if self._is_admin is None:
            raise RuntimeError(
                "Flask-Credly needs to know who may use its pages. Register a function"
                " that returns True for an admin with '@credly.is_admin' before"
                " 'credly.init_app(app)'."
            )

        if self._courses is None:
            raise RuntimeError(
                "Flask-Credly needs to know what can be mapped. Register a function"
                " that returns Course objects with '@credly.courses' before"
                " 'credly.init_app(app)'."
            )

        for name, hook in (
            ("courses", self._courses),
            ("is_admin", self._is_admin),
            ("member", self._member),
            ("past_completions", self._past_completions),
            ("actor", self._actor),
        ):
            if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
                raise RuntimeError(
                    f"Flask-Credly does not await the '@credly.{name}' hook. Write it"
                    " with 'def', not 'async def'."
                )

        settings = Settings.from_config(app.config)
        _check_routing(app, settings)
        state = State(
            app=app,
            settings=settings,
            db=_find_database(app),
            list_courses=self._courses,
            is_admin=self._is_admin,
            load_member=self._member,
            past_completions=self._past_completions,
            name_actor=self._actor,
        )
        warn_of_unknown(app.config)
        warn_of_ignored(app.config, os.environ)
        copy_tables(state.db.metadata)

        with app.app_context():
            record.watch_writes(state.engine)

        # Not for each command of Flask's: the worker says it itself.
        if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
            keys.warn_of_derived(app.config)

        app.extensions["credly"] = state
        app.register_blueprint(make_blueprint(state.settings))
        app.cli.add_command(make_group())

    def erase_member(self, member_id: str) -> people.Erased:
        """Make everything that is stored about a member name nobody, and send nothing
        of it any more. For your own code that closes an account; do that first, so that
        no completion is signalled after it. Credly has to be asked separately.

        Where ``db.session`` has written in its open transaction, it is a part of that
        transaction, and done when you commit. Needs an application context.

        :return: What was done, in numbers, and Credly's ids of the badges.
        :raises ValueError: If it cannot be a member's id.
        """
        state, member_id = get_state(), read_id(member_id, "member_id")
        session = state.session()

        if record.has_writes(session, state.engine):
            with hide_parameters():
                return people.erase_in(session.connection(), member_id)

        return people.erase(state.engine, member_id)

    def export_member(self, member_id: str) -> dict[str, t.Any]:
        """Get everything that is stored about a member, fit for JSON. Needs an
        application context.

        :raises ValueError: If it cannot be a member's id.
        """
        return people.export(get_state().engine, read_id(member_id, "member_id"))


def _check_routing(app: Flask, settings: Settings) -> None:
    if "credly" in app.blueprints:
        raise RuntimeError(
            "A blueprint of this app is named 'credly', as ours is. Give yours another"
            " name."
        )

    if app.url_map.host_matching and settings.host is None:
        raise RuntimeError(
            "This app has host_matching, so that the pages need a host. Set CREDLY_HOST"
            " to it, such as 'admin.example.org', with the port if there is one."
        )

    if settings.host is not None and not app.url_map.host_matching:
        raise RuntimeError(
            "CREDLY_HOST is for an app made with host_matching=True, and this one"
            " was not. Remove it."
        )


def _find_database(app: Flask) -> SQLAlchemy:
    """Get the host's database, if it is one that we can work with."""
    if "sqlalchemy" not in app.extensions:
        raise RuntimeError("Call 'db.init_app(app)' before 'credly.init_app(app)'.")

    db = app.extensions["sqlalchemy"]

    if not isinstance(db, SQLAlchemy):
        raise RuntimeError(
            "Flask-Credly needs Flask-SQLAlchemy (flask_sqlalchemy.SQLAlchemy), and"
            f" found {type(db).__module__}.{type(db).__qualname__}. Both cannot be on"
            " one app: make 'db' by Flask-SQLAlchemy."
        )

    with app.app_context():
        engine = db.engines.get(None)

    if engine is None:
        raise RuntimeError(
            "Flask-Credly keeps its tables in the default database, and there is none."
            " Set SQLALCHEMY_DATABASE_URI; it may be the address of one of your"
            " SQLALCHEMY_BINDS."
        )

    if engine.dialect.is_async or engine.dialect.name not in DATABASES:
        raise RuntimeError(
            "Flask-Credly works with SQLite, PostgreSQL, MariaDB and MySQL, by drivers"
            " that are not asynchronous, and not with"
            f" {engine.dialect.name}+{engine.dialect.driver}. Set"
            " SQLALCHEMY_DATABASE_URI to another."
        )

    return db


# One receiver for all apps, found through the sender: blinker would forget a function
# made in init_app, and a proxy of the app is not the sender it compares with.
@signals.course_completed.connect
def _on_course_completed(sender: t.Any, **given: t.Any) -> None:
    app = None

    try:
        if (app := _app_of(sender)) is not None:
            _record(app, **given)
    except Exception:
        member = given.get("member")
        _log_lost(
            member.get("id")
            if isinstance(member, dict)
            else getattr(member, "id", None),
            given.get("kind", "course"),
            given.get("course_id"),
            given.get("completed_at", "now"),
        )

        if app is not None:
            unrecorded.note(app.extensions["credly"], given.get("session"))


def _log_lost(
    member_id: object, kind: object, course_id: object, completed_at: object
) -> None:
    # The host's request goes on. Here is all that is needed to do it again, but for
    # the member's name and address. These two are as they were sent: no line may be
    # made of them.
    kind, completed_at = clean(str(kind), 50), clean(str(completed_at), 50)
    logger.exception(
        "A completion was not recorded: member %r, %s %r, completed at %s. Send it"
        " again once the cause is mended.",
        member_id,
        kind,
        course_id,
        completed_at,
        extra={
            "credly_event": "completion_lost",
            "credly_member": member_id,
            "credly_kind": kind,
            "credly_course": course_id,
            "credly_completed_at": completed_at,
        },
    )


def _app_of(sender: t.Any) -> Flask | None:
    if hasattr(sender, "_get_current_object"):
        sender = sender._get_current_object()

    if not isinstance(sender, Flask) and has_app_context():
        sender = current_app._get_current_object()  # type: ignore[attr-defined]

    if isinstance(sender, Flask):
        # Another app of this process may have no integration.
        if "credly" in sender.extensions:
            return sender

        logger.debug("The app %s has no Flask-Credly: nothing is kept.", sender.name)
        return None

    raise TypeError("Send the signal with the app: course_completed.send(app, …).")


def _record(app: Flask, *, session: orm.Session | None = None, **given: t.Any) -> None:
    completion = read_completion(**given)
    state: State = app.extensions["credly"]

    if has_app_context() and current_app._get_current_object() is app:  # type: ignore[attr-defined]
        _record_in_context(state, completion, session)
    else:
        with app.app_context():
            _record_in_context(state, completion, session)


def _record_in_context(
    state: State, completion: Completion, session: orm.Session | None
) -> None:
    host = session if session is not None else state.session
    host = host() if isinstance(host, orm.scoped_session) else host
    recorded = record.record(state.engine, host, completion, join=session is not None)

    if recorded == "yes":
        bell.ring_soon(state)
    elif recorded == "no":
        # No member's id: what stands in the ledger is named by no record.
        logger.debug(
            "A completion of %s %r adds nothing: that is not mapped, or the member's"
            " badge is in the ledger.",
            completion.kind,
            completion.course_id,
        )
    else:
        host.info.setdefault(_NOTES, []).append(_Note(state, completion, recorded))


@dataclasses.dataclass(frozen=True)
class _Note:
    """What a session's transaction has still to bring about when it ends."""

    state: State
    completion: Completion
    recorded: record.Recorded


@event.listens_for(orm.Session, "after_commit")
def _ring_after_commit(session: orm.Session) -> None:
    # Also called when a savepoint is released.
    if _NOTES not in session.info or session.in_nested_transaction():
        return

    notes: list[_Note] = session.info[_NOTES]
    joined = [note for note in notes if note.recorded == "joined"]
    # No statement can be sent from here.
    session.info[_NOTES] = [
        dataclasses.replace(note, recorded="later")
        for note in notes
        if note.recorded != "joined"
    ]

    for state in {note.state.app: note.state for note in joined}.values():
        bell.ring_soon(state)


@event.listens_for(orm.Session, "after_transaction_end")
def _finish_notes(session: orm.Session, transaction: orm.SessionTransaction) -> None:
    if _NOTES not in session.info or transaction.parent is not None:
        return

    for note in session.info.pop(_NOTES):
        if note.recorded == "later":
            _record_later(note)
        else:
            logger.warning(
                "A completion was taken back with the transaction that it was sent in:"
                " member %r, %s %r.",
                note.completion.member.id,
                note.completion.kind,
                note.completion.course_id,
                extra={
                    "credly_event": "completion_taken_back",
                    "credly_member": note.completion.member.id,
                    "credly_kind": note.completion.kind,
                    "credly_course": note.completion.course_id,
                    "credly_completed_at": note.completion.completed_at,
                },
            )


def _record_later(note: _Note) -> None:
    try:
        with note.state.app.app_context():
            if record.record_alone(note.state.engine, note.completion):
                bell.ring_soon(note.state)
    except Exception:
        done = note.completion
        _log_lost(done.member.id, done.kind, done.course_id, done.completed_at)
        unrecorded.note(note.state, ended=True)
