"""Wires everything to an application."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import inspect
import logging
import os
import typing as t

import click
from flask import Flask
from flask.cli import AppGroup
from flask_sqlalchemy import SQLAlchemy

from . import i18n
from . import keys
from .admin import make_blueprint
from .catalog import DEFAULT_TENANT
from .catalog import read_id
from .catalog import read_tenant
from .completions import host_transaction
from .completions.receiver import listen
from .ledger.transaction import hide_parameters
from .ledger.transaction import in_our_schema
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
from .tables import copy_tables

if t.TYPE_CHECKING:
    from .ledger import issuances
    from .ledger import privacy
    from .ledger.member import MemberBadge

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
        self._is_viewer: AdminHook | None = None
        self._may_revoke: AdminHook | None = None

    def courses(self, hook: HookT) -> HookT:
        """Register the function that returns the courses and learning paths that can
        be mapped, as an iterable of :class:`.Course`. Required.
        """
        self._courses = hook
        return hook

    def is_admin(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor may see and use
        the pages. Required.

        Only ``True`` lets the visitor in. If the function returns a response, such as a
        redirect to the login, that response is sent.
        """
        self._is_admin = hook
        return hook

    def member(self, hook: HookT) -> HookT:
        """Register the function that takes a member's id and returns the current
        :class:`.Member`, or ``None``. It is called before a retry, and when a name or
        address is missing.
        """
        self._member = hook
        return hook

    def past_completions(self, hook: HookT) -> HookT:
        """Register the function that yields earlier completions of a course, for
        ``flask credly backfill``, the page that does the same, and the daily search for
        missed completions.

        It takes a :class:`.Course` and an optional start time, and yields pairs of a
        :class:`.Member` and the time of the completion, or :class:`.PastCompletion`
        objects. It must yield the first within 15 minutes. After that, another worker
        assumes that this one has died.
        """
        self._past_completions = hook
        return hook

    def actor(self, hook: HookT) -> HookT:
        """Register the function that returns the name of the current admin for the
        audit trail: a string, or ``None`` if it is not known.
        """
        self._actor = hook
        return hook

    def tenant(self, hook: HookT) -> HookT:
        """Register the function that returns the community of the current request, for
        a site with several communities: a string of 1 to 191 characters that never
        changes, or ``None`` if there is none; the pages then answer 404.

        Each community has its own connection to Credly, mappings and badges. The other
        hooks, except ``is_operator``, receive its name as ``tenant=`` if they accept
        that argument. This hook is called only in requests: outside a request, pass
        ``tenant=`` with :data:`.course_completed`.
        """
        self._tenant = hook
        return hook

    def is_operator(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor may see the page
        of all communities. It shows their state and how many badges wait, but no
        members' data.

        As with :meth:`is_admin`, only ``True`` lets the visitor in.
        """
        self._is_operator = hook
        return hook

    def is_viewer(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor, who is not an
        admin, may see the pages without changing anything. It is meant for people who
        answer members' questions.

        Viewers see masked e-mail addresses and cannot export anything. As with
        :meth:`is_admin`, only ``True`` lets the visitor in. Without this hook, nobody
        is a viewer.
        """
        self._is_viewer = hook
        return hook

    def may_revoke(self, hook: HookT) -> HookT:
        """Register the function that says whether the current visitor, who is an admin,
        may revoke, correct and reissue badges.

        As with :meth:`is_admin`, only ``True`` counts as permission. Without this hook,
        every admin may.
        """
        self._may_revoke = hook
        return hook

    def init_app(self, app: Flask) -> None:
        """Register the extension on an application.

        Call it after you have loaded the configuration and called
        ``db.init_app(app)``.

        :raises RuntimeError: If it is called twice, too early, or without a required
            hook.
        :raises ValueError: If a ``CREDLY_*`` value is wrong.
        """
        if "credly" in app.extensions:
            raise RuntimeError("Flask-Credly is already initialized on this app.")

        if self._is_admin is None:
            raise RuntimeError(
                "Flask-Credly needs to know who may use its pages. Before"
                " 'credly.init_app(app)', register a function with"
                " '@credly.is_admin' that returns True for an admin."
            )

        if self._courses is None:
            raise RuntimeError(
                "Flask-Credly needs to know which courses can be mapped. Before"
                " 'credly.init_app(app)', register a function with"
                " '@credly.courses' that returns Course objects."
            )

        for name, hook in (
            ("courses", self._courses),
            ("is_admin", self._is_admin),
            ("member", self._member),
            ("past_completions", self._past_completions),
            ("actor", self._actor),
            ("tenant", self._tenant),
            ("is_operator", self._is_operator),
            ("is_viewer", self._is_viewer),
            ("may_revoke", self._may_revoke),
        ):
            if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
                raise RuntimeError(
                    f"Flask-Credly does not support an async '@credly.{name}'"
                    " hook. Use 'def' instead of 'async def'."
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
            is_viewer=self._is_viewer,
            may_revoke=self._may_revoke,
        )
        warn_of_unknown(app.config)
        warn_of_ignored(app.config, os.environ)
        copy_tables(state.db.metadata)

        # Not for each command of Flask's: the worker says it itself.
        if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
            keys.warn_of_derived(app.config)

        i18n.init_app(app, settings.language)
        app.extensions["credly"] = state
        for_operators = state.has_tenants and state.is_operator is not None
        blueprint = make_blueprint(state.settings, for_operators=for_operators)
        app.register_blueprint(blueprint)
        app.cli.add_command(_Commands("credly", help="Issue Credly badges."))
        listen()

    def erase_member(
        self, member_id: str, *, tenant: str = DEFAULT_TENANT
    ) -> privacy.Erased:
        """Make everything that is stored about a member anonymous, and cancel badges
        that wait. Call it from your own code after closing an account, so that no more
        completions are sent for it. Ask Credly separately to erase its data.

        If ``db.session`` has already written in its open transaction, the erasure joins
        that transaction and takes effect when you commit. Needs an application context.

        :param tenant: The member's community.
        :return: What was done, in numbers, and Credly's ids of the badges.
        :raises ValueError: If the member's id or the community is not valid.
        """
        from .ledger import privacy

        state, member_id = get_state(), read_id(member_id, "member_id")
        tenant = read_tenant(tenant)
        state.check_ids(member_id=member_id)
        session = state.session()

        if joined := host_transaction.to_join(session, state.engine):
            with hide_parameters(), in_our_schema(joined.connection, state.engine):
                return privacy.erase_in(joined.connection, tenant, member_id)

        return privacy.erase(state.engine, tenant, member_id)

    def export_member(
        self, member_id: str, *, tenant: str = DEFAULT_TENANT
    ) -> dict[str, t.Any]:
        """Return everything that is stored about a member, ready for JSON. Needs an
        application context.

        :param tenant: The member's community.
        :raises ValueError: If the member's id or the community is not valid.
        """
        from .ledger import privacy

        state, member_id = get_state(), read_id(member_id, "member_id")
        tenant = read_tenant(tenant)
        state.check_ids(member_id=member_id)
        return privacy.export(state.engine, tenant, member_id)

    def unaccepted(
        self,
        older_than: dt.timedelta = dt.timedelta(0),
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> cabc.Iterator[issuances.Unaccepted]:
        """Yield the badges that members have neither accepted nor declined, newest
        first, for a reminder of your own. Each has ``issuance_id``, ``member_id``,
        ``course_id``, ``kind``, ``template_id``, ``badge_id``, ``badge_name``,
        ``issued_at`` and ``accept_url``. The status is as of the last look at Credly.
        Needs an application context.

        :param older_than: The minimum time for which a badge has waited.
        :param tenant: The community.
        """
        from .ledger import issuances

        state, tenant = get_state(), read_id(tenant, "tenant")
        return issuances.unaccepted(state.engine, tenant, older_than)

    def badges_of(
        self,
        member_id: str,
        *,
        tenant: str = DEFAULT_TENANT,
        course_id: str | None = None,
        kind: str = "course",
        can_be_earned: bool = True,
    ) -> list[MemberBadge]:
        """Return a member's badges, to show them to that member: first those that wait
        to be accepted, then the newest, and last those that can be earned. They are
        read from the database with one statement, as of the last look at Credly. In a
        template, ``{{ credly_badges("42") }}`` renders them. Needs an application
        context.

        Each has ``name``, ``image_url``, ``status``, ``course_id``, ``kind``,
        ``issued_on``, ``expires_on``, ``accept_url``, ``page_url`` and
        ``linkedin_url``: see :class:`~flask_credly.ledger.member.MemberBadge`.

        :param tenant: The member's community.
        :param course_id: Return only badges for this course. ``None`` returns all.
        :param kind: The kind of ``course_id``: "course" or "learning_path".
        :param can_be_earned: Whether to include badges that the member can still earn.
        :raises ValueError: If an id is not valid.
        """
        from .ledger import member

        state = get_state().of(read_tenant(tenant))
        return member.badges_of(
            state,
            member_id,
            course_id=course_id,
            kind=kind,
            can_be_earned=can_be_earned,
        )

    def forget_tenant(self, tenant: str) -> bool:
        """Remove a community's connection to Credly with its mappings and templates,
        and empty the names and addresses of its badges. Call it from your own code when
        a community closes, after a commit: it has a transaction of its own. Needs an
        application context.

        :param tenant: Its name, as returned by ``@credly.tenant``.
        :return: Whether it was connected.
        :raises ValueError: If the name is not valid.
        """
        from . import accounts
        from .ledger.audit import COMMAND_LINE

        state = get_state().of(read_tenant(tenant))
        return accounts.remove(state, by=COMMAND_LINE)


class _Commands(AppGroup):
    """``flask credly``: what it can do is loaded when a command or its help is asked
    for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> t.Any:
        from .cli import in_words

        with in_words(ctx):
            return super().invoke(ctx)

    def _load(self) -> None:
        from .cli import add_commands

        if not self._loaded:
            self._loaded = True
            add_commands(self)

    _loaded = False


def _check_routing(app: Flask, settings: Settings) -> None:
    if "credly" in app.blueprints:
        raise RuntimeError(
            "This app already has a blueprint named 'credly', the name that"
            " Flask-Credly uses. Rename it."
        )

    if app.url_map.host_matching and settings.host is None:
        raise RuntimeError(
            "This app uses host_matching. Set CREDLY_HOST to the host of the"
            " pages, such as 'admin.example.org', including any port."
        )

    if settings.host is not None and not app.url_map.host_matching:
        raise RuntimeError(
            "CREDLY_HOST requires an app with host_matching=True, which this one"
            " is not. Remove CREDLY_HOST."
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

    if name == "csrf_token":
        return

    from .admin.forms import FIELD_NAMES

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
            "Flask-Credly keeps its tables in the default database, but none is"
            " configured. Set SQLALCHEMY_DATABASE_URI. It may be the address of"
            " one of your SQLALCHEMY_BINDS."
        )

    if engine.dialect.is_async or engine.dialect.name not in DATABASES:
        raise RuntimeError(
            "Flask-Credly does not support"
            f" {engine.dialect.name}+{engine.dialect.driver}. Set"
            " SQLALCHEMY_DATABASE_URI to SQLite, PostgreSQL, MariaDB or MySQL, with a"
            " driver that is not asynchronous."
        )

    return db
