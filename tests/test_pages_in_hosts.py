"""Every page and every form, in hosts that are odd in one way each.

A new host is one entry of :data:`HOSTS`. A statement that waits for a lock or a
connection of the same request waits for ever: databases and pools give up soon here, so
that it shows as an error.
"""

from __future__ import annotations

import atexit
import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import html
import html.parser
import json
import re
import shutil
import tempfile
import typing as t
from concurrent import futures

import flask.templating
import jinja2
import jinja2.nativetypes
import jinja2.sandbox
import pytest
import sqlalchemy as sa
import werkzeug.routing
from conftest import a_member
from conftest import connect_and_map
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask import g
from flask import render_template_string
from flask import Response
from flask.sessions import SecureCookieSession
from flask.sessions import SessionInterface
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly import Course
from flask_credly import jobs
from flask_credly.admin.blueprint import ROUTES
from flask_credly.admin.query import read_key
from flask_credly.admin.query import write_key
from flask_credly.ledger import backfills
from flask_credly.ledger import retrying
from flask_credly.ledger import unrecorded
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator

HX = {"HX-Request": "true"}
WAIT = 0.3
"""Seconds until SQLite or a pool gives up."""

Setup = cabc.Callable[[Flask, SQLAlchemy], None]


@dataclasses.dataclass(frozen=True)
class Odd:
    """A host that is odd.

    :param setup: What it does before ``init_app``.
    :param after: What it does after that.
    :param base: Where its pages are reached.
    :param wrap: Puts something around its WSGI application.
    :param databases: On which it is tried.
    """

    setup: Setup = lambda app, db: None
    after: cabc.Callable[[Host], None] = lambda host: None
    app: cabc.Callable[[], Flask] = lambda: Flask("conftest")
    db: cabc.Callable[[], SQLAlchemy] = SQLAlchemy
    config: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    engine: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    base: str = "http://localhost"
    prefix: str = "/integrations"
    wrap: cabc.Callable[[t.Any], t.Any] = lambda wsgi: wsgi
    databases: tuple[str, ...] = ("sqlite",)


LAYOUT = """[% extends "outer.html" %]
[% block title %][% endblock %]
[% block main %]<main>[[ visits | default(0) | shout ]][% block content required %]
[% endblock %]</main>[% endblock %]"""
OUTER = """<html><head><title>[% block title %][% endblock %] | [[ self.title() ]]
</title></head><body>[% block main %][% endblock %]</body></html>"""


def jinja(
    *,
    own_layout: bool = False,
    cls: type[jinja2.Environment] | None = None,
    **options: t.Any,
) -> Odd:
    """Make a host with other options of Jinja's, and a layout that is written for
    them.
    """
    layout = {"host.html": LAYOUT, "outer.html": OUTER}
    start, end = options.get("block_start_string"), options.get("block_end_string")
    open_, close = (
        options.get("variable_start_string"),
        options.get("variable_end_string"),
    )

    for name, text in layout.items():
        text = text.replace("[%", start or "{%").replace("%]", end or "%}")
        layout[name] = text.replace("[[", open_ or "{{").replace("]]", close or "}}")

    def setup(app: Flask, db: SQLAlchemy) -> None:
        if cls is not None:
            app.jinja_environment = cls  # type: ignore[assignment]

        app.jinja_options = {**app.jinja_options, **options}
        app.jinja_env.filters["shout"] = lambda value: f"{value}!"
        app.jinja_env.loader = jinja2.DictLoader(layout)

    return Odd(setup, config={} if own_layout else {"CREDLY_LAYOUT": "host.html"})


HOSTS_OWN = {
    "base.html": "of the host's",
    "index.html": "{% extends 'base.html' %}",
    "macros.html": "of the host's",
    "_card.html": "of the host's",
}


def compiled(app: Flask, db: SQLAlchemy, *, whole: bool = True) -> None:
    """Have templates that were compiled before, named like ours but for the folder, and
    one in the place of one of ours.
    """
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    texts = {
        **HOSTS_OWN,
        "host.html": LAYOUT.replace("[%", "{%").replace("%]", "%}"),
        "outer.html": OUTER.replace("[%", "{%").replace("%]", "%}"),
        "credly/_open.html": "{{ credly_assets() }}<p>{{ 1 + 1 }} compiled</p>",
    }
    texts = {
        name: text.replace("[[", "{{").replace("]]", "}}")
        for name, text in texts.items()
    }
    app.jinja_env.filters["shout"] = lambda value: f"{value}!"
    app.jinja_env.loader = jinja2.DictLoader(texts)
    app.jinja_env.compile_templates(folder, zip=None)
    made = jinja2.ModuleLoader(folder)
    others = jinja2.DictLoader({"credly/_denied.html": "never"})

    if whole:
        app.jinja_env.loader = jinja2.ChoiceLoader([made, others])
    else:
        app.jinja_env.loader = flask.templating.DispatchingJinjaLoader(app)
        app.jinja_loader = made


def is_compiled(host: Host) -> None:
    page = host.app.test_client().get("/integrations/credly").text
    assert "<p>2 compiled</p>" in page and "of the host" not in page
    loader = host.app.jinja_env.loader

    with host.app.test_request_context():
        if isinstance(loader, jinja2.ChoiceLoader):
            assert flask.render_template("index.html") == HOSTS_OWN["base.html"]

    found = host.app.test_cli_runner().invoke(args=["credly", "doctor", "--json"])
    pages = json.loads(found.output)["checks"]["pages"]
    assert pages["status"] == "ok", pages


def named_alike(app: Flask, db: SQLAlchemy) -> None:
    app.jinja_env.loader = jinja2.DictLoader(HOSTS_OWN)


_Flask = flask.templating.Environment


class Sandbox(_Flask, jinja2.sandbox.ImmutableSandboxedEnvironment):
    def __init__(self, app: Flask, **options: t.Any) -> None:
        super().__init__(app, **options)
        self.binop_table = self.default_binop_table.copy()
        self.unop_table = self.default_unop_table.copy()


class Native(_Flask, jinja2.nativetypes.NativeEnvironment):
    pass


def shadows(app: Flask, db: SQLAlchemy) -> None:
    """Take names that our templates use for something else."""
    for name in ("trim", "list", "map", "selectattr", "groupby", "string", "unique"):
        app.jinja_env.filters[name] = lambda *_, **__: "wrong"

    for name in ("dict", "url_for", "range"):
        app.jinja_env.globals[name] = None

    @app.context_processor
    def names() -> dict[str, t.Any]:
        return dict.fromkeys(
            (
                *("url_for", "message", "connection", "errors", "form", "kept", "said"),
                *("credly_gettext", "credly_layout", "dict", "wrong", "row", "wanted"),
            )
        )


def seen(app: Flask, db: SQLAlchemy, *, commit: bool = True) -> None:
    """Note in each request when the visitor was last seen, and commit after it. Every
    hook reads.
    """

    class Visitor(db.Model):  # type: ignore[name-defined, misc]
        id = sa.Column(sa.Integer, primary_key=True)
        seen = sa.Column(sa.Integer, default=0, nullable=False)

    def visitor() -> t.Any:
        return db.session.scalars(sa.select(Visitor)).first()

    @app.before_request
    def note() -> None:
        g.visitor = visitor() or Visitor(seen=0)
        g.visitor.seen += 1
        db.session.add(g.visitor)
        db.session.flush()

    @app.after_request
    def keep(response: Response) -> Response:
        if commit:
            db.session.commit()

        return response

    @app.context_processor
    def show() -> dict[str, t.Any]:
        return {"visits": g.visitor.seen if "visitor" in g else 0}

    app.extensions["visitor"] = visitor


def other_schema(app: Flask, db: SQLAlchemy) -> None:
    """Have all tables in a schema that the engine leads to."""
    engine = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"])

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA school")

    engine.dispose()


def only_reads(app: Flask, db: SQLAlchemy) -> None:
    """Read in each request, and leave the transaction open."""

    @app.before_request
    def note() -> None:
        db.session.execute(sa.text("SELECT 1"))

    app.extensions["visitor"] = lambda: db.session.execute(sa.text("SELECT 1"))


def replica() -> SQLAlchemy:
    from flask_sqlalchemy.session import Session

    class Routing(Session):
        def get_bind(self, *args: t.Any, **given: t.Any) -> t.Any:
            if self._flushing or isinstance(given.get("clause"), sa.UpdateBase):
                return super().get_bind(*args, **given)

            return self._db.engines["replica"]

    return SQLAlchemy(session_options={"class_": Routing})


def savepoint(app: Flask, db: SQLAlchemy) -> None:
    """Put each request into a savepoint."""

    @app.before_request
    def begin() -> None:
        g.savepoint = db.session.begin_nested()
        db.session.execute(sa.text("SELECT 1"))

    @app.after_request
    def end(response: Response) -> Response:
        g.savepoint.commit()
        db.session.commit()
        return response


def begun(app: Flask, db: SQLAlchemy) -> None:
    """Begin each request's transaction by hand."""

    @app.before_request
    def begin() -> None:
        db.session.begin()
        db.session.execute(sa.text("SELECT 1"))

    @app.after_request
    def end(response: Response) -> Response:
        db.session.commit()
        return response


def nothing_late(app: Flask, db: SQLAlchemy) -> None:
    """Load the visitor at the start of each request, with all that its layout shows:
    what is loaded later is an error.
    """

    class Visitor(db.Model):  # type: ignore[name-defined, misc]
        id = sa.Column(sa.Integer, primary_key=True)
        roles = orm.relationship("Role", lazy="raise")

    class Role(db.Model):  # type: ignore[name-defined, misc]
        id = sa.Column(sa.Integer, primary_key=True)
        visitor_id = sa.Column(sa.Integer, sa.ForeignKey(Visitor.id))

    @app.before_request
    def load() -> None:
        if db.session.get(Role, 1) is None:
            db.session.add_all([Visitor(id=1), Role(id=1, visitor_id=1)])
            db.session.commit()

        roles = orm.selectinload(Visitor.roles)
        g.visitor = db.session.get(Visitor, 1, options=[roles])

    @app.context_processor
    def show() -> dict[str, t.Any]:
        return {"roles": len(g.visitor.roles) if "visitor" in g else 0}


def catch_all(app: Flask, db: SQLAlchemy) -> None:
    """Take every address that nothing else has."""

    @app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
    @app.route("/<path:path>", methods=["GET", "POST"])
    def page(path: str) -> t.Any:
        return "Not here.", 404


def languages(app: Flask, db: SQLAlchemy) -> None:
    """Take the language out of each address, and put it into each."""

    class Lower(werkzeug.routing.UnicodeConverter):
        regex = "[a-z]+"

    app.url_map.converters["default"] = app.url_map.converters["string"] = Lower

    @app.url_value_preprocessor
    def pull(endpoint: str | None, values: dict[str, t.Any] | None) -> None:
        g.language = (values or {}).pop("language", None)

    @app.url_defaults
    def add(endpoint: str, values: dict[str, t.Any]) -> None:
        values.setdefault("language", "en")


class JSON(Response):
    """What a host whose views answer in JSON makes its responses of."""

    default_mimetype = "application/json"

    def __init__(self, *args: t.Any, **given: t.Any) -> None:
        super().__init__(*args, **{**given, "mimetype": "application/json"})


class Api(Flask):
    """Answers in JSON, whatever a view returns."""

    response_class = JSON

    def make_response(self, rv: t.Any) -> Response:
        if isinstance(rv, Response):
            return rv

        return t.cast(Response, self.json.response({"data": str(rv)}))


def converters(app: Flask, db: SQLAlchemy) -> None:
    """Have converters of its own under the usual names, and under ours."""

    class Strict(werkzeug.routing.BaseConverter):
        regex = "[A-Z]{3}"

        def to_python(self, value: str) -> t.Any:
            raise werkzeug.routing.ValidationError

        def to_url(self, value: t.Any) -> str:
            return f"x{value}"

    names = ("default", "string", "int", "path", "any", "float", "uuid", "credly")
    app.url_map.converters.update(dict.fromkeys(names, Strict))
    app.extensions["converters"] = Strict


def converters_are_kept(host: Host) -> None:
    kept = host.app.url_map.converters
    assert kept["credly"] is kept["path"] is host.app.extensions["converters"]


class OnTheServer(SessionInterface):
    """Keeps sessions on the server, as JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def open_session(self, app: Flask, request: t.Any) -> SecureCookieSession:
        kept = self.kept.get(request.cookies.get("sid", ""), "{}")
        return SecureCookieSession(json.loads(kept))

    def save_session(self, app: Flask, session: t.Any, response: Response) -> None:
        self.kept["only"] = json.dumps(dict(session))
        response.set_cookie("sid", "only")


def server_sessions(app: Flask, db: SQLAlchemy) -> None:
    app.session_interface = OnTheServer()


def named_as_ours(app: Flask, db: SQLAlchemy) -> None:
    """Put into each address what ours use themselves."""

    @app.url_defaults
    def add(endpoint: str, values: dict[str, t.Any]) -> None:
        values.setdefault("page", "2")
        values.setdefault("q", "")


POOL_OF_ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": WAIT}
EVERYWHERE = ("sqlite", "postgresql", "mariadb")

HOSTS: dict[str, Odd] = {
    "plain": Odd(databases=EVERYWHERE),
    # Sessions, pools and locks.
    "last-seen": Odd(seen, databases=EVERYWHERE),
    "last-seen-wal": Odd(seen, config={"pragma": "journal_mode=wal"}),
    "begin-immediate": Odd(seen, config={"immediate": True}),
    "begin-immediate-wal": Odd(
        seen, config={"immediate": True, "pragma": "journal_mode=wal"}
    ),
    "pool-of-one": Odd(seen, engine=POOL_OF_ONE, databases=EVERYWHERE),
    "pool-of-one-reads": Odd(only_reads, engine=POOL_OF_ONE, databases=EVERYWHERE),
    "null-pool": Odd(seen, engine={"poolclass": sa.NullPool}),
    "static-pool": Odd(
        seen,
        config={"SQLALCHEMY_DATABASE_URI": "sqlite://"},
    ),
    "replica": Odd(db=replica, config={"SQLALCHEMY_BINDS": {"replica": "sqlite://"}}),
    "nothing-is-loaded-late": Odd(nothing_late),
    "autobegin-off": Odd(
        begun, db=lambda: SQLAlchemy(session_options={"autobegin": False})
    ),
    "no-autoflush": Odd(
        seen,
        db=lambda: SQLAlchemy(
            session_options={"autoflush": False, "expire_on_commit": False}
        ),
    ),
    "two-phase": Odd(
        seen,
        db=lambda: SQLAlchemy(session_options={"twophase": True}),
        databases=("mariadb",),
    ),
    "sql-modes": Odd(
        seen,
        engine={
            "connect_args": {
                "sql_mode": "ANSI,TRADITIONAL,ORACLE,ONLY_FULL_GROUP_BY,"
                "NO_BACKSLASH_ESCAPES"
            }
        },
        databases=("mariadb",),
    ),
    "schema-of-the-engine": Odd(
        other_schema,
        engine={"execution_options": {"schema_translate_map": {None: "school"}}},
        databases=("postgresql",),
    ),
    # Options of Jinja's.
    "layout": jinja(),
    "strict-undefined": jinja(undefined=jinja2.StrictUndefined),
    "strict-undefined-own-layout": jinja(
        own_layout=True, undefined=jinja2.StrictUndefined
    ),
    "autoescape-off": jinja(autoescape=False),
    "autoescape-off-own-layout": jinja(own_layout=True, autoescape=False),
    "delimiters": jinja(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        line_statement_prefix="%%",
        line_comment_prefix="##",
    ),
    "blocks-trimmed": jinja(trim_blocks=True, lstrip_blocks=True),
    "finalize": jinja(finalize=lambda value: "?" if value is None else f"{value}"),
    "not-optimized": jinja(optimized=False, cache_size=0),
    "async-templates": jinja(enable_async=True),
    "extensions": jinja(extensions=["jinja2.ext.i18n", "jinja2.ext.do"]),
    "sandbox": jinja(cls=Sandbox),
    "native-types": jinja(cls=Native),
    "names-taken": Odd(shadows),
    "templates-named-alike": Odd(named_alike),
    "compiled-templates": Odd(
        compiled, is_compiled, config={"CREDLY_LAYOUT": "host.html"}
    ),
    "compiled-templates-own-layout": Odd(
        functools.partial(compiled, whole=False), is_compiled
    ),
    # Ways to the pages.
    "host-matching": Odd(
        app=lambda: Flask(
            "conftest", host_matching=True, static_host="www.example.org"
        ),
        config={"CREDLY_HOST": "admin.example.org"},
        base="http://admin.example.org",
    ),
    "subdomain-matching": Odd(
        app=lambda: Flask("conftest", subdomain_matching=True),
        config={"SERVER_NAME": "example.org"},
        base="http://example.org",
    ),
    "behind-a-prefix": Odd(
        wrap=lambda wsgi: DispatcherMiddleware(Flask("other"), {"/school": wsgi}),
        prefix="/school/integrations",
    ),
    "behind-a-proxy": Odd(
        wrap=lambda wsgi: ProxyFix(wsgi, x_prefix=1, x_host=1, x_proto=1),
        base="http://localhost",
    ),
    "application-root": Odd(
        wrap=lambda wsgi: DispatcherMiddleware(Flask("other"), {"/school": wsgi}),
        config={"APPLICATION_ROOT": "/school"},
        prefix="/school/integrations",
    ),
    "own-prefix": Odd(
        config={"CREDLY_URL_PREFIX": "/admin/tools/badges"},
        prefix="/admin/tools/badges",
    ),
    "slashes-do-not-matter": Odd(
        lambda app, db: setattr(app.url_map, "strict_slashes", False)
    ),
    "catch-all": Odd(catch_all),
    "languages": Odd(languages),
    "server-sessions": Odd(server_sessions),
    "addresses-with-our-names": Odd(named_as_ours),
    "small-forms": Odd(
        config={
            "MAX_CONTENT_LENGTH": 2000,
            "MAX_FORM_MEMORY_SIZE": 1000,
            "MAX_FORM_PARTS": 10,
        }
    ),
    "errors-are-trapped": Odd(
        config={"TRAP_HTTP_EXCEPTIONS": True, "TRAP_BAD_REQUEST_ERRORS": True}
    ),
    "own-converters": Odd(converters, converters_are_kept),
    "answers-in-json": Odd(app=lambda: Api("conftest")),
    "savepoint": Odd(savepoint, engine={"pool_size": 2, "max_overflow": 0}),
}


def listen(host: Host, odd: Odd) -> None:
    """Set SQLite's modes on each connection."""
    pragma, immediate = odd.config.get("pragma"), odd.config.get("immediate")

    with host.app.app_context():
        engine = host.db.engine

    if engine.dialect.name != "sqlite" or not (pragma or immediate):
        return

    @sa.event.listens_for(engine, "connect")
    def connect(raw: t.Any, _: t.Any) -> None:
        if pragma:
            raw.execute(f"PRAGMA {pragma}")

        if immediate:
            raw.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if immediate:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()


class Visit:
    """An admin who goes through all of it."""

    def __init__(self, odd: Odd, make_host: MakeHost, database: str) -> None:
        self.odd = odd
        app = odd.app()
        engine = dict(odd.engine)

        if database.startswith("sqlite"):
            engine["connect_args"] = {"timeout": WAIT}

        visitor = app.extensions.get

        def hook(value: t.Any) -> t.Any:
            (visitor("visitor") or (lambda: None))()
            return value

        def past(course: Course, since: t.Any) -> t.Any:
            hook(None)

            for number in range(3):
                yield a_member(str(number)), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)

        config = {"SQLALCHEMY_ENGINE_OPTIONS": engine, **odd.config}
        self.host = make_host(
            app=app,
            db=odd.db(),
            setup=odd.setup,
            is_admin=lambda: hook(True),
            courses=lambda: hook(COURSES),
            actor=lambda: hook("Ada"),
            past_completions=past,
            **config,
        )
        listen(self.host, odd)
        odd.after(self.host)
        self.visited: set[tuple[str, str]] = set()
        wsgi = odd.wrap(app.wsgi_app)
        self.client = Client(wsgi, TestResponse)
        request_started(app, self.visited)

    def get(self, path: str, **given: t.Any) -> TestResponse:
        response = self.client.get(
            f"{self.odd.prefix}{path}", base_url=self.odd.base, buffered=True, **given
        )
        assert response.status_code in (200, 303), (path, response.text[-2000:])
        expected = "text/csv" if path.endswith(".csv") else "text/html"
        assert response.mimetype == expected, path
        return response

    def post(self, path: str, *, page: str = "/credly", **given: t.Any) -> TestResponse:
        fields = given.pop("data", {})
        html = self.get(page).text
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', html)
        assert token, html
        response = self.client.post(
            f"{self.odd.prefix}{path}",
            base_url=self.odd.base,
            data={"csrf_token": token[1], **fields},
            **given,
        )
        assert response.status_code in (200, 303), (path, response.text[-2000:])
        assert response.mimetype == "text/html", path
        return response

    def ids(self, column: t.Any) -> list[int]:
        with self.host.app.app_context(), self.host.db.engine.connect() as connection:
            return list(connection.scalars(sa.select(column).order_by(column)))


def request_started(app: Flask, visited: set[tuple[str, str]]) -> None:
    from flask import request

    # Not at the end: a host's own functions may fail before.
    @functools.partial(app.before_request_funcs.setdefault(None, []).insert, 0)
    def note() -> None:
        visited.add((request.method, (request.endpoint or "").partition(".")[2]))


def fail_one(visit: Visit, row_id: int) -> None:
    with visit.host.app.app_context(), visit.host.db.engine.begin() as connection:
        connection.execute(
            sa.update(Issuance)
            .where(Issuance.id == row_id)
            .values(state="failed", due_at=None, error="Not found.")
        )


def take_back(visit: Visit) -> None:
    """Have what waits taken back, and stop that."""
    address = "/credly/undo?status=waiting"
    page = visit.get(address).text
    hidden = r'type="hidden" name="(shown|last)" value="(\d+)"'
    data = {
        **dict(re.findall(hidden, page)),
        "reason": "<b>By mistake</b>",
        "tell_pending": "no",
        "tell_accepted": "no",
    }
    data["number"] = data["shown"]
    begun = visit.post(address, page=address, data=data)
    run = re.search(r"/undo/(\d+)(\?|$)", begun.location)
    assert run, begun.location
    this = f"/credly/undo/{run[1]}"
    page = visit.get(this).text
    assert "&lt;b&gt;By mistake" in page and "<b>By" not in page
    visit.get(this, headers=HX)
    visit.post(f"{this}/stop", page=this)
    assert visit.get(f"{this}.csv").mimetype == "text/csv"


def compare(visit: Visit) -> None:
    """Compare with Credly: stop it, let it be done, and ask for a repair."""
    this = "/credly/compare"
    visit.get(this)
    visit.post(this, page=this)
    run = re.search(rf"{this}/(\d+)/stop", visit.get(this, headers=HX).text)
    assert run
    visit.post(f"{this}/{run[1]}/stop", page=this)
    visit.post(this, page=this)

    with visit.host.app.app_context():
        jobs.compare()

    assert "Matching" in visit.get(this).text
    assert visit.get(f"{this}.csv").mimetype == "text/csv"
    visit.get(f"{this}/repair?bucket=not_recorded")
    data = {"bucket": "not_recorded", "number": "0"}
    visit.post(f"{this}/repair", page=this, data=data)


def retry_many(visit: Visit) -> None:
    """Retry more badges than are retried at once, and stop that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrying, "PORTION", 0)
        visit.post("/credly/badges/retry", data={"number": "1"})

    run = re.search(r"/badges/retry/(\d+)/stop", visit.get("/credly/badges").text)
    assert run
    visit.post(f"/credly/badges/retry/{run[1]}/stop")


def go_through(visit: Visit, credly: CredlySimulator) -> None:
    """Use every page and every form."""
    one, other = credly.add_template("One Badge"), credly.add_template("Other Badge")
    (sheet,) = re.findall(r'href="([^"]*credly\.css[^"]*)"', visit.get("/").text)
    styles = visit.client.get(sheet, base_url=visit.odd.base, buffered=True)
    assert (styles.status, styles.mimetype) == ("200 OK", "text/css")
    visit.get("/credly")
    visit.get("/credly/connection")
    visit.get("/credly/activity")
    visit.post(
        "/credly",
        page="/credly/connection",
        data={
            "organization_id": credly.organization_id,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
        },
    )

    for headers in (None, HX):
        for path in ("test", "templates", "pause", "resume"):
            visit.post(f"/credly/{path}", headers=headers)

        visit.get("/credly/mappings/new", headers=headers)

    for key, headers in (("course:py-101", None), ("course:sql", HX)):
        added = visit.post(
            "/credly/mappings", headers=headers, data={"course": key, "template": one}
        )
        assert headers is None or "Mapping saved" in added.text

    first, second = visit.ids(Mapping.id)

    for id_, key, headers in (
        (first, "course:py-101", None),
        (second, "learning_path:data", HX),
    ):
        base = f"/credly/mappings/{id_}"
        visit.get(base, headers=headers)
        visit.get(f"{base}/row", headers=headers)
        data = {"course": key, "template": other}
        visit.post(base, headers=headers, data=data)

    for id_, headers in ((first, None), (second, HX)):
        base = f"/credly/mappings/{id_}"
        visit.post(f"{base}/remove", headers=headers)
        data = {"undo": id_}
        visit.post("/credly/mappings", headers=headers, data=data)

    first, second = visit.ids(Mapping.id)
    base = f"/credly/mappings/{first}"
    person = {"email": "a@example.org", "first_name": "<img src=x>", "last_name": "B"}
    visit.get(f"{base}/options")

    for headers, data in ((None, {}), (HX, {"preview": "1"}), (None, {"group": "<b>"})):
        visit.post(f"{base}/options", headers=headers, data=data)

    assert "Group tag: &lt;b&gt;" in visit.get("/credly").text
    visit.get(f"{base}/test")
    visit.post(f"{base}/test", data=person)
    visit.get(f"{base}/backfill")
    started = visit.post(f"{base}/backfill")
    run = re.search(r"/backfills/(\d+)(\?|$)", started.location)
    assert run, started.location
    visit.get(f"/credly/backfills/{run[1]}")
    visit.get(f"/credly/backfills/{run[1]}", headers=HX)
    visit.post(f"/credly/backfills/{run[1]}/stop")
    (row_id,) = visit.ids(Issuance.id)
    take_back(visit)
    fail_one(visit, row_id)
    visit.get("/")
    visit.get("/credly/banners", headers=HX)
    badges = visit.get("/credly/badges").text
    assert badges.count('<h1 id="credly-h1"') == badges.count("<title>") == 1
    assert "Issued badges" in badges.partition("</title>")[0]
    assert "&lt;img src=x&gt;" in badges and "<img src=x>" not in badges
    assert "Not found." in badges
    alone = f"/credly/badges/{row_id}"
    page = visit.get(alone).text
    assert page.count('<h1 id="credly-h1"') == 1 and "&lt;img src=x&gt;" in page
    visit.get(alone, headers=HX)
    visit.get(f"{alone}/row", headers=HX)

    for action in ("revoke", "correct", "again"):
        assert alone in visit.get(f"{alone}/{action}").location
        answer = visit.post(f"{alone}/{action}", headers=HX)
        assert alone in answer.headers["HX-Redirect"]

    keep = {"decision": "keep", "shown": "1"}
    assert "/credly/badges" in visit.get("/credly/withdrawn").location
    answer = visit.post("/credly/withdrawn", headers=HX, data=keep)
    assert "/credly/badges" in answer.headers["HX-Redirect"]
    visit.get("/credly/badges/retry")
    row = visit.post(f"{alone}/retry?listed=1", headers=HX).text
    assert row.strip().startswith("<tr")
    fail_one(visit, row_id)
    retry_many(visit)
    visit.post("/credly/badges/retry")
    compare(visit)
    visit.post(f"/credly/badges/{row_id}/check", headers=HX)
    visit.get("/credly/errors")

    with visit.host.app.app_context():
        count = unrecorded.Count(3, dt.datetime.now(dt.UTC))
        unrecorded.add(visit.host.state.engine, "default", count)

    assert "could not be recorded since" in visit.get("/credly").text
    visit.post("/credly/unrecorded/3/dismiss")
    assert "could not be recorded since" not in visit.get("/credly").text

    for name in ("badges", "errors", "activity"):
        file = visit.get(f"/credly/{name}.csv")
        assert file.mimetype == "text/csv" and file.text.count("\n") >= 1

    assert "Issue badges for earlier" in visit.get("/credly/activity").text
    with visit.host.app.test_request_context(base_url=visit.odd.base):
        # As a template of the host's calls it, whatever its delimiters are.
        shown = visit.host.app.jinja_env.globals["credly_badges"]("42")
        assert "Can be earned" in shown and "<bdi>Other Badge</bdi>" in shown

    visit.get("/credly/remove")
    visit.post("/credly/remove")
    assert "Not connected" in visit.get("/credly/removal", headers=HX).text
    assert visit.ids(Mapping.id) == []
    assert visit.visited >= {(method, view.__name__) for method, _, view in ROUTES}


QUICK = ("plain", "pool-of-one", "layout", "behind-a-prefix")
"""One of each sort. The others are slow together."""

CASES = [
    pytest.param(
        *(odd, database),
        id=f"{name}-{database}",
        marks=() if name in QUICK else pytest.mark.slow,
    )
    for name, odd in HOSTS.items()
    for database in odd.databases
]


@pytest.mark.slow
@pytest.mark.parametrize(("odd", "database"), CASES, indirect=["database"])
def test_every_page_and_form_works(
    odd: Odd, database: str, make_host: MakeHost, credly: CredlySimulator
) -> None:
    visit = Visit(odd, make_host, database)

    # The browser of other tests may have an event loop in this thread.
    if visit.host.app.jinja_env.is_async:
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(go_through, visit, credly).result()
    else:
        go_through(visit, credly)

    if "visitor" in visit.host.app.extensions and odd.setup is seen:
        with visit.host.app.app_context():
            visitor = visit.host.app.extensions["visitor"]()
            assert visitor.seen > 50  # what the host wrote in each request is kept


def test_a_host_that_answers_in_json_is_refused_with_a_page(
    make_host: MakeHost,
) -> None:
    host = make_host(app=Api("conftest"), is_admin=lambda: admin)
    # Not Flask's, which makes its responses of the host's class.
    client, admin = Client(host.app, TestResponse), False
    paths = ("/integrations/credly", "/integrations/credly/pause")

    for headers in (None, HX):
        denied = client.get(paths[0], headers=headers)
        admin = True
        expired = client.post(paths[1], headers=headers)
        foreign = client.post(paths[1], headers={"Sec-Fetch-Site": "cross-site"})
        admin = False
        assert (denied.status_code, foreign.status_code) == (403, 403)
        assert {denied.mimetype, foreign.mimetype, expired.mimetype} == {"text/html"}
        assert headers or "Content-Security-Policy" in denied.headers


def host_page(app: Flask, db: SQLAlchemy) -> None:
    """A page of the host's with the card in it, which is then not saved."""
    seen(app, db, commit=False)

    @app.route("/tools")
    def tools() -> t.Any:
        html = render_template_string("{{ credly_card() }}{{ visits }}")
        g.pop("visitor")
        return html, {"Cache-Control": "public, max-age=60"}


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(Odd(host_page), id="default"),
        pytest.param(Odd(host_page, engine=POOL_OF_ONE), id="pool-of-one"),
        pytest.param(
            Odd(host_page, config={"SQLALCHEMY_DATABASE_URI": "sqlite://"}),
            id="static-pool",
        ),
        pytest.param(Odd(host_page, config={"immediate": True}), id="begin-immediate"),
    ],
)
@every_database
def test_the_card_neither_commits_nor_waits_for_the_hosts_work(
    odd: Odd, database: str, make_host: MakeHost, credly: CredlySimulator
) -> None:
    visit = Visit(odd, make_host, database)
    page = visit.client.get("/tools")

    assert page.status_code == 200
    assert "Not connected" in page.text and page.text.endswith("1")
    assert page.headers["Cache-Control"] == "no-store, private"

    with visit.host.app.app_context():
        assert visit.host.app.extensions["visitor"]() is None


@every_database
def test_a_card_that_cannot_read_spoils_nothing_of_the_hosts(
    make_host: MakeHost,
) -> None:
    host = make_host(setup=seen)

    @host.app.route("/tools")
    def tools() -> str:
        return render_template_string("{{ credly_card() }}")

    with host.app.app_context(), host.db.engine.begin() as connected:
        for table in reversed(Base.metadata.sorted_tables):
            connected.exec_driver_sql(f"DROP TABLE {table.name}")

    page = host.app.test_client().get("/tools")
    assert "Status unavailable" in page.text

    with host.app.app_context():
        assert host.app.extensions["visitor"]().seen == 1


@pytest.mark.parametrize("name", ["pool-of-one", "begin-immediate-wal", "replica"])
def test_every_command_works(
    name: str, database: str, make_host: MakeHost, credly: CredlySimulator
) -> None:
    visit = Visit(HOSTS[name], make_host, database)
    host = visit.host
    template_id = credly.add_template("One Badge")

    with host.app.app_context():
        connect_and_map(host, credly, template_id)

    run = host.app.test_cli_runner().invoke

    for command in (
        ["backfill", "--dry-run"],
        ["backfill"],
        ["status"],
        ["sync"],
        ["retry", "1"],
        ["retry", "--all"],
        ["prune"],
        ["rotate-keys"],
        ["export-member", "1"],
        ["erase-member", "1"],
    ):
        done = run(args=["credly", *command])
        assert done.exit_code == 0, (command, done.output, done.exception)

    assert len(visit.ids(Issuance.id)) == 3


def test_a_renamed_course_has_its_new_title_on_every_page(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    courses = [Course("py-101", "Old title")]
    host = make_host(courses=lambda: courses, past_completions=lambda *_: [])
    template_id = credly.add_template("One Badge")

    with host.app.app_context():
        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )
        mapping = accounts.add_mapping(host.state, courses[0], template_id)
        host.complete()
        run_id = backfills.start(host.state.engine, "default", mapping.id)

    courses[:] = [Course("py-101", "New title")]
    client = host.app.test_client()

    for path in (
        "",
        f"/mappings/{mapping.id}/test",
        f"/mappings/{mapping.id}/backfill",
        f"/backfills/{run_id}",
        "/badges",
        "/badges?course=course:py-101",
    ):
        page = client.get(f"/integrations/credly{path}").text
        assert "New title" in page and "Old title" not in page, path

    courses.clear()  # deleted: the title that is stored
    assert "Old title" in client.get("/integrations/credly/badges").text


def test_a_replaced_template_is_rendered_as_ours_are(make_host: MakeHost) -> None:
    """By the usual delimiters, escaped, and with the filters of the host's. Only ours
    lose their indentation.
    """
    options = {"variable_start_string": "<<", "variable_end_string": ">>"}
    odd = jinja(undefined=jinja2.StrictUndefined, autoescape=False, **options)

    def setup(app: Flask, db: SQLAlchemy) -> None:
        odd.setup(app, db)
        text = "<p>{{ '<b>' | shout }}{{ nothing }}{{ visits }}</p><pre>\n  2</pre>"
        t.cast(t.Any, app.jinja_env.loader).mapping["credly/_card.html"] = text
        app.context_processor(lambda: {"visits": 7})

    client = make_host(setup=setup, **odd.config).app.test_client()
    page = client.get("/integrations/")

    assert "<p>&lt;b&gt;!7</p><pre>\n  2</pre>" in page.text
    assert "\n  <" not in client.get("/integrations/credly").text
    assert page.text.startswith("<html>")


class Choices(html.parser.HTMLParser):
    """Reads which choices a page has and which is chosen, as a browser does."""

    def __init__(self, name: str, page: str) -> None:
        super().__init__()
        self.name, self.inside = name, False
        self.values: list[str] = []
        self.chosen: list[str] = []
        # What a browser makes of line breaks before it reads.
        self.feed(page.replace("\r\n", "\n").replace("\r", "\n"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)

        if tag == "select":
            self.inside = given.get("name") == self.name
        elif tag == "option" and self.inside and given["value"]:
            self.values.append(given["value"])
            self.chosen += [given["value"]] if "selected" in given else []


ODD_IDS = [
    *(" led", "trailed ", "\ttabbed\t", "two\r\nlines", "one\nline", "old\rMac", "\n"),
    *("\u3000wide\u00a0", "line\u2028break", "\u200fmarked", "\U000e0001tag", "\x7f"),
    *("of:colons:", "50%20off", "*:x", '"quoted" & <b>', "a+b", "日本語", "e\u0301"),
    *("x" * 191, "\u2028" * 191),
]


class Kept(jinja2.BytecodeCache):
    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if code := self.code.get(bucket.key):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        self.code[bucket.key] = bucket.bytecode_to_string()


def test_our_templates_are_compiled_into_the_hosts_cache(make_host: MakeHost) -> None:
    app = Flask(__name__)
    kept = Kept()
    app.jinja_options = {**app.jinja_options, "bytecode_cache": kept}
    host = make_host(app=app)

    assert host.app.test_client().get("/integrations/").status_code == 200
    assert kept.code


@pytest.mark.slow
@every_database
def test_a_course_is_found_again_whatever_its_id_is_made_of(
    database: str, make_host: MakeHost, credly: CredlySimulator
) -> None:
    courses = [
        Course(id_, f"Course {number}", kind=kind)
        for number, id_ in enumerate(ODD_IDS)
        for kind in ("course", "learning_path")
    ]
    host = make_host(courses=lambda: courses, past_completions=lambda *_: [])
    host.app.config["WTF_CSRF_ENABLED"] = False
    template_id = credly.add_template("One Badge")

    with host.app.app_context():
        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )

    client = host.app.test_client()
    base = "/integrations/credly"
    keys = Choices("course", client.get(f"{base}/mappings/new", headers=HX).text).values
    assert len(keys) == len(courses)

    for key in keys:
        # A browser sends each line break as these two.
        sent = re.sub("\r\n|\r|\n", "\r\n", key)
        data = {"course": sent, "template": template_id}
        added = client.post(f"{base}/mappings", data=data, headers=HX)
        assert "Mapping saved" in added.text, key

    with host.app.app_context():
        mappings = list(host.db.session.scalars(sa.select(Mapping)))
        assert {(each.kind, each.course_id) for each in mappings} == {
            (each.kind, each.id) for each in courses
        }

    for mapping in mappings:
        edited = client.get(f"{base}/mappings/{mapping.id}", headers=HX).text
        (key,) = Choices("course", edited).chosen
        host.complete("1", mapping.course_id, kind=mapping.kind)
        # By the link of the mapping's row.
        row = client.get(f"{base}/mappings/{mapping.id}/row", headers=HX).text
        link = html.unescape(re.findall(r'href="([^"]*badges\?[^"]*)"', row)[0])
        shown = client.get(link).text
        assert Choices("course", shown).chosen == [key]
        # Its completions are refused there: see test_completion.py.
        refused = "mysql" in database and mapping.course_id.endswith(" ")
        assert shown.count('id="credly-badge-') == (not refused), key

    removed = mappings[ODD_IDS.index("two\r\nlines")]
    client.post(f"{base}/mappings/{removed.id}/remove", headers=HX)
    undone = client.post(f"{base}/mappings", data={"undo": removed.id}, headers=HX)
    assert "Mapping saved" in undone.text


def test_a_plain_id_stands_in_forms_and_addresses_as_it_is() -> None:
    for id_ in ("py-101", "of:colons:", "50%20off", "*:x", "a b", "日本語"):
        assert write_key("course", id_) == f"course:{id_}"
        assert read_key(f"course:{id_}") == ("course", id_)

    assert read_key("course*:%00\0a%ff%") == ("course", "a\ufffd%")
