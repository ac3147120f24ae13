"""What the extension knows of one application, and of one community in it."""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import inspect
import math
import threading
import typing as t

from flask import current_app
from flask import Flask
from flask import Response

from .catalog import Course
from .catalog import DEFAULT_TENANT
from .catalog import Member
from .catalog import PastCompletion
from .settings import Settings

if t.TYPE_CHECKING:
    import rq
    import sqlalchemy as sa
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import orm

# Each may take ``tenant=`` besides.
CoursesHook = cabc.Callable[..., cabc.Iterable[Course]]
AdminHook = cabc.Callable[..., "bool | Response"]
ActorHook = cabc.Callable[..., "str | None"]
MemberHook = cabc.Callable[..., "Member | None"]
PastHook = cabc.Callable[
    ..., cabc.Iterable["tuple[Member, dt.datetime] | PastCompletion"]
]
TenantHook = cabc.Callable[[], "str | None"]


@dataclasses.dataclass(eq=False)
class WebQueue:
    """How this process last saw the queue: the one thing about an app that changes.
    All times are monotonic.

    :param silent_until: When Redis may be tried again.
    :param rings_at: When it rings next for completions, or rang last.
    :param ringer: Rings then.
    :param ringing: The thread that rings, or rang last.
    :param trouble: What was in the way last: a
        :class:`~flask_credly.issuing.trouble.Trouble`. ``None``: nothing.
    :param told: What of it was logged.
    """

    queue: rq.Queue | None = None
    silent_until: float = 0
    rings_at: float = -math.inf
    ringer: threading.Timer | None = None
    ringing: threading.Thread | None = None
    trouble: t.Any = None
    told: t.Any = None


@dataclasses.dataclass(eq=False)
class Uncounted:
    """Completions that could not be recorded, and that nothing but this process counts
    so far.

    :param counts: The community's name, a number, and the time of the first.
    :param writer: The thread that brings them into the database.
    :param over: Set once the process ends: the writer tries for the last time.
    """

    counts: collections.deque[tuple[str, int, dt.datetime]] = dataclasses.field(
        default_factory=collections.deque
    )
    writer: threading.Thread | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    writing: threading.Lock = dataclasses.field(default_factory=threading.Lock)


@dataclasses.dataclass(frozen=True)
class AppState:
    """What the extension knows of one application: ``app.extensions["credly"]``."""

    app: Flask
    settings: Settings
    db: SQLAlchemy = dataclasses.field(repr=False)
    """Its address may hold a password in its query, which SQLAlchemy shows."""
    list_courses: CoursesHook
    is_admin: AdminHook
    load_member: MemberHook | None = None
    past_completions: PastHook | None = None
    name_actor: ActorHook | None = None
    name_tenant: TenantHook | None = None
    is_operator: AdminHook | None = None
    is_viewer: AdminHook | None = None
    may_revoke: AdminHook | None = None
    web_queue: WebQueue = dataclasses.field(default_factory=WebQueue)
    uncounted: Uncounted = dataclasses.field(default_factory=Uncounted)

    @property
    def heals(self) -> bool:
        """Whether missed completions are looked for once a day."""
        return self.settings.heal and self.past_completions is not None

    @property
    def engine(self) -> sa.Engine:
        """The host's default engine. Needs an application context."""
        return self.db.engine

    def check_ids(self, **ids: str) -> None:
        """Check that the database tells ids from all others.

        :param ids: Each by what the error calls it.
        :raises ValueError: If it does not.
        """
        for name, value in ids.items():
            # They pad when they compare: another member's badge would be this one's.
            if value.endswith(" ") and self.engine.dialect.name in (
                "mysql",
                "mariadb",
            ):
                raise ValueError(
                    f"{name} must not end with a space. MariaDB and MySQL ignore"
                    " trailing spaces."
                )

    def page(self, path: str) -> str:
        """Get the address of a page of ours, without the host's name.

        :param path: Below ``CREDLY_URL_PREFIX``, such as ``"/credly/badges"``.
        """
        root: str = self.app.config.get("APPLICATION_ROOT", "/")
        return f"{root.rstrip('/')}{self.settings.url_prefix}{path}"

    @property
    def session(self) -> orm.scoped_session[t.Any]:
        """The host's session."""
        return self.db.session

    @property
    def has_tenants(self) -> bool:
        """Whether the host has several communities."""
        return self.name_tenant is not None

    def of(self, tenant: str) -> Community:
        """Get the same for one community: its hooks are told which one it is, if they
        take ``tenant=``.
        """
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(AppState)
        }

        for name in _HOOKS:
            if (hook := values[name]) is not None and _takes_tenant(hook):
                values[name] = functools.partial(hook, tenant=tenant)

        return Community(**values, tenant=tenant)


_HOOKS = (
    *("list_courses", "load_member", "past_completions"),
    *("is_admin", "is_viewer", "may_revoke", "name_actor"),
)


def _takes_tenant(hook: cabc.Callable[..., object]) -> bool:
    # One that is bound already is of a community.
    if isinstance(hook, functools.partial) and "tenant" in hook.keywords:
        return True

    try:
        parameters = inspect.signature(hook).parameters
    except (TypeError, ValueError):  # some that are written in C
        return False

    return "tenant" in parameters


@dataclasses.dataclass(frozen=True)
class Community(AppState):
    """The same for one community of the application.

    :param tenant: Which, as the host names it.
    """

    tenant: str = DEFAULT_TENANT


def get_state() -> AppState:
    """Get the state of the current application.

    :raises RuntimeError: If the extension was not initialized on it.
    """
    try:
        state: AppState = current_app.extensions["credly"]
    except KeyError:
        raise RuntimeError(
            "Flask-Credly is not initialized on this app. Call 'credly.init_app(app)'."
        ) from None

    return state
