"""Wires everything to an application."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import typing as t

import sqlalchemy as sa
from flask import current_app
from flask import Flask
from flask import has_app_context
from flask import has_request_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm

from . import accounts
from . import interruption
from . import keys
from . import signals
from .admin import make_blueprint
from .admin.forms import FIELD_NAMES
from .catalog import Completion
from .catalog import DEFAULT_TENANT
from .catalog import id_of_member
from .catalog import read_completion
from .catalog import read_id
from .catalog import show
from .cli import make_group
from .issuing import notifier
from .issuing import unrecorded
from .ledger import host_transaction
from .ledger import privacy
from .ledger import record
from .ledger.audit import COMMAND_LINE
from .ledger.transaction import hide_parameters
from .ledger.transaction import in_our_schema
from .models import copy_tables
from .settings import Settings
from .settings import warn_of_ignored
from .settings import warn_of_unknown
from .state import ActorHook
from .state import AdminHook
from .state import AppState
from .state import CoursesHook
from .state import get_state
from .state import MemberHook
from .state import PastHook
from .state import TenantHook

logger = logging.getLogger("flask_credly")

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
        self._courses: CoursesHook | None = None
        self._is_admin: AdminHook | None = None
        self._member: MemberHook | None = None
        self._past_completions: PastHook | None = None
        self._actor: ActorHook | None = None
        self._tenant: TenantHook | None = None
        self._is_operator: AdminHook | None = None

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
        are wanted, and yields pairs of a :class:`.Member` and the time of the
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

    def tenant(self, hook: HookT) -> HookT:
        """Register the function that names the community of the current request, for
        a host that has several: a string of 1 to 191 characters that stays the same
        for life, or ``None``, where there is none: the pages answer 404 then.

        Each community has its own connection to Credly, mappings and badges. The hooks
        for courses, members, past completions, admins and the actor get its name as
        ``tenant=`` if they take that. Asked in requests only: see
        :data:`.course_completed` for what is sent elsewhere.
        """
        self._tenant = hook
        return hook

    def is_operator(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor may see the page
        of all communities: their state and what waits, and no member's data.

        As :meth:`is_admin`: only ``True`` lets in.
        """
        self._is_operator = hook
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
            ("tenant", self._tenant),
            ("is_operator", self._is_operator),
        ):
            if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
                raise RuntimeError(
                    f"Flask-Credly does not await the '@credly.{name}' hook. Write it"
                    " with 'def', not 'async def'."
                )

        settings = Settings.from_config(app.config)
        _check_routing(app, settings)
        _check_forms(app)
        state = AppState(
            app=app,
            settings=settings,
            db=_find_database(app),
            list_courses=self._courses,
            is_admin=self._is_admin,
            load_member=self._member,
            past_completions=self._past_completions,
            name_actor=self._actor,
            name_tenant=self._tenant,
            is_operator=self._is_operator,
        )
        warn_of_unknown(app.config)
        warn_of_ignored(app.config, os.environ)
        copy_tables(state.db.metadata)

        # Not for each command of Flask's: the worker says it itself.
        if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
            keys.warn_of_derived(app.config)

        app.extensions["credly"] = state
        app.register_blueprint(make_blueprint(state.settings))
        app.cli.add_command(make_group())

    def erase_member(
        self, member_id: str, *, tenant: str = DEFAULT_TENANT
    ) -> privacy.Erased:
        """Make everything that is stored about a member name nobody, and send nothing
        of it any more. For your own code that closes an account; do that first, so that
        no completion is signalled after it. Credly has to be asked separately.

        Where ``db.session`` has written in its open transaction, it is a part of that
        transaction, and done when you commit. Needs an application context.

        :param tenant: The member's community.
        :return: What was done, in numbers, and Credly's ids of the badges.
        :raises ValueError: If it cannot be a member's id.
        """
        state, member_id = get_state(), read_id(member_id, "member_id")
        tenant = read_id(tenant, "tenant")
        state.check_ids(member_id=member_id, tenant=tenant)
        session = state.session()

        if joined := host_transaction.to_join(session, state.engine):
            with hide_parameters(), in_our_schema(joined.connection, state.engine):
                return privacy.erase_in(joined.connection, tenant, member_id)

        return privacy.erase(state.engine, tenant, member_id)

    def export_member(
        self, member_id: str, *, tenant: str = DEFAULT_TENANT
    ) -> dict[str, t.Any]:
        """Get everything that is stored about a member, fit for JSON. Needs an
        application context.

        :param tenant: The member's community.
        :raises ValueError: If it cannot be a member's id.
        """
        state, member_id = get_state(), read_id(member_id, "member_id")
        tenant = read_id(tenant, "tenant")
        state.check_ids(member_id=member_id, tenant=tenant)
        return privacy.export(state.engine, tenant, member_id)

    def forget_tenant(self, tenant: str) -> bool:
        """Remove a community's connection to Credly, with its mappings and templates,
        and let what is left of its badges name nobody. For your own code that closes a
        community. Needs an application context.

        :param tenant: Its name, as ``@credly.tenant`` gives it.
        :return: Whether it was connected.
        :raises ValueError: If it cannot be a name.
        """
        state = get_state().of(read_id(tenant, "tenant"))
        return accounts.remove(state, by=COMMAND_LINE)


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

    if app.has_static_folder and (files := (app.static_url_path or "").rstrip("/")):
        ours = settings.url_prefix

        # A web server takes all below it for files, and the app's own files go first.
        if f"{ours}/".startswith(f"{files}/") or files == f"{ours}/static":
            raise ValueError(
                "CREDLY_URL_PREFIX must be a path whose pages and files are not in one"
                f" place with the app's own files, which are at {files!r}. Set it to"
                " another, such as '/integrations', not"
                f" {ours!r}."
            )


def _check_forms(app: Flask) -> None:
    """Check that the token of a form has a field of its own."""
    name = app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")

    if name in FIELD_NAMES:
        raise ValueError(
            "WTF_CSRF_FIELD_NAME must be a name that no field of ours has, such as"
            f" 'csrf_token', not {name!r}."
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
        if (app := _app_of(sender)) is not None:
            _record(app, given)
    except record.Settled as e:
        raise t.cast(BaseException, e.__cause__) from None
    except BaseException as e:
        _note_lost(app, given)

        if found := interruption.find(e):
            raise found from None


def _note_lost(
    app: Flask | None, given: dict[str, t.Any], *, ended: bool = False
) -> None:
    """Say that a completion was not recorded, and count it: every one passes here.

    :param app: ``None`` where it is not known: then it cannot be counted.
    :param given: What was sent.
    :param ended: Whether the host's transaction is over.
    """
    try:
        # The host's request goes on. Here is all that is needed to do it again, but
        # for the member's name and address.
        member_id = show(id_of_member(given.get("member")))
        course, kind = show(given.get("course_id")), show(given.get("kind", "course"))
        when = show(given.get("completed_at", "now"))
        logger.exception(
            "A completion was not recorded: member %r, %s %r, completed at %s. Send it"
            " again after fixing the cause.",
            member_id,
            kind,
            course,
            when,
            extra={
                "credly_event": "completion_lost",
                "credly_member": member_id,
                "credly_kind": kind,
                "credly_course": course,
                "credly_completed_at": when,
            },
        )
    finally:
        if app is not None:
            state = app.extensions["credly"].of(_tenant_or_none(app, given))
            unrecorded.note(state, given.get("session"), ended=ended)


def _tenant_or_none(app: Flask, given: dict[str, t.Any]) -> str:
    """Get whose completion it is. Empty: that is not known."""
    try:
        return _tenant_of(app.extensions["credly"], given.get("tenant"))
    except Exception as e:
        # What is wrong with it may be why the completion was not recorded.
        logger.debug("The community is not known (%s).", type(e).__name__)
        return ""


def _tenant_of(state: AppState, given: t.Any) -> str:
    """Get the community that a completion is of.

    :raises ValueError: It is not known.
    """
    if state.name_tenant is None:
        if given not in (None, DEFAULT_TENANT):
            raise ValueError(
                "This app has one community: leave 'tenant' out of course_completed, or"
                " register a function with '@credly.tenant'."
            )

        return DEFAULT_TENANT

    if given is None and has_request_context():
        given = state.name_tenant()

    if given is None:
        raise ValueError(
            "Of which community is it? Send it as course_completed.send(app, …,"
            " tenant=…): outside of a request, or where '@credly.tenant' returns None,"
            " it is not known."
        )

    return read_id(given, "tenant")


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


def _record(app: Flask, given: dict[str, t.Any]) -> None:
    state: AppState = app.extensions["credly"]
    session = given.get("session")
    ours = ("session", "tenant")
    completion = read_completion(
        **{name: value for name, value in given.items() if name not in ours},
        tenant=_tenant_of(state, given.get("tenant")),
    )

    if has_app_context() and current_app._get_current_object() is app:  # type: ignore[attr-defined]
        _record_in_context(state, completion, session)
    else:
        with app.app_context():
            _record_in_context(state, completion, session)


def _record_in_context(
    state: AppState, completion: Completion, session: t.Any | None
) -> None:
    state.check_ids(member_id=completion.member.id, course_id=completion.course_id)
    host = session if session is not None else state.session
    host = host() if isinstance(host, orm.scoped_session) else host

    if not isinstance(host, orm.Session):
        raise TypeError(
            "session must be a SQLAlchemy Session, such as db.session, not"
            f" {type(host).__name__}."
        )

    engine: sa.Engine | sa.Connection = state.engine
    record.record(
        engine.engine,
        host,
        completion,
        _Outcome(state, completion),
        # In a suite of the host's, a connection may stand in the engine's place. What
        # is written is to go with it.
        join=session is not None or isinstance(engine, sa.Connection),
    )


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What is done about a completion, whatever becomes of it."""

    state: AppState
    completion: Completion

    def recorded(self) -> None:
        notifier.notify_soon(self.state)

    def adds_nothing(self) -> None:
        # No member's id: what stands in the ledger is named by no record.
        logger.debug(
            "A completion of %s %r adds nothing: that is not mapped, or the member's"
            " badge is in the ledger.",
            self.completion.kind,
            self.completion.course_id,
        )

    def taken_back(self) -> None:
        done = self.completion
        logger.warning(
            "A completion was taken back with the transaction that it was sent in:"
            " member %r, %s %r.",
            done.member.id,
            done.kind,
            done.course_id,
            extra={
                "credly_event": "completion_taken_back",
                "credly_member": done.member.id,
                "credly_kind": done.kind,
                "credly_course": done.course_id,
                "credly_completed_at": done.completed_at,
            },
        )

    def lost(self) -> None:
        done = self.completion
        given = {
            "member": done.member,
            "course_id": done.course_id,
            "kind": done.kind,
            "completed_at": done.completed_at,
            "tenant": done.tenant,
        }
        _note_lost(self.state.app, given, ended=True)
