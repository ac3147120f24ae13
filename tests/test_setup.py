"""Putting the extension into an application."""

from __future__ import annotations

import enum
import json
import re
import subprocess
import sys
import typing as t
from unittest import mock

import pytest
import redis
import rq
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from cryptography.fernet import Fernet
from flask import Blueprint
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_credly import Course
from flask_credly import Credly
from flask_credly import doctor
from flask_credly import keys
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.models import UTCDateTime
from flask_credly.state import get_state
from flask_credly.testing import CredlySimulator


def bare(**config: t.Any) -> tuple[Flask, Credly]:
    app = Flask(__name__)
    app.config.update(
        {"SECRET_KEY": "k", "SQLALCHEMY_DATABASE_URI": "sqlite://", **config}
    )
    credly = Credly()
    credly.courses(lambda: [])
    credly.is_admin(lambda: True)
    return app, credly


def test_it_can_be_initialized_once_on_an_app(host: Host) -> None:
    with pytest.raises(RuntimeError, match="already initialized"):
        host.credly.init_app(host.app)


def test_the_database_comes_first() -> None:
    app, credly = bare()

    with pytest.raises(RuntimeError, match=r"'db.init_app\(app\)' before"):
        credly.init_app(app)


def test_a_database_of_another_extension_is_refused() -> None:
    app, credly = bare()
    app.extensions["sqlalchemy"] = object()

    with pytest.raises(RuntimeError, match=r"needs Flask-SQLAlchemy .* found builtins"):
        credly.init_app(app)


def test_a_default_database_has_to_be_there() -> None:
    app, credly = bare(SQLALCHEMY_BINDS={"learning": "sqlite://"})
    del app.config["SQLALCHEMY_DATABASE_URI"]
    SQLAlchemy().init_app(app)

    with pytest.raises(RuntimeError, match="Set SQLALCHEMY_DATABASE_URI"):
        credly.init_app(app)

    assert "credly" not in app.extensions


def test_a_default_database_among_the_binds_is_as_good(make_host: MakeHost) -> None:
    host = make_host(SQLALCHEMY_DATABASE_URI=None, SQLALCHEMY_BINDS={None: "sqlite://"})

    with host.app.app_context():
        assert host.state.engine is host.db.engines[None]


@pytest.mark.parametrize(
    "url", ["mssql+pyodbc://db", "oracle+oracledb://db", "postgresql+asyncpg://db"]
)
def test_another_database_is_refused(url: str) -> None:
    driver = mock.MagicMock(paramstyle="qmark", version="5.0.0", __version__="9.0.0")
    app, credly = bare(
        SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS={"module": driver}
    )
    SQLAlchemy().init_app(app)
    name = url.partition(":")[0].partition("+")[0]

    with pytest.raises(RuntimeError, match=rf"does not support {name}\+"):
        credly.init_app(app)


def test_a_host_is_named_where_hosts_are_matched() -> None:
    app, credly = bare()
    app.url_map.host_matching = True
    SQLAlchemy().init_app(app)

    with pytest.raises(RuntimeError, match="Set CREDLY_HOST"):
        credly.init_app(app)


def test_a_host_is_not_named_where_none_is_matched() -> None:
    app, credly = bare(CREDLY_HOST="admin.example.org")
    SQLAlchemy().init_app(app)

    with pytest.raises(RuntimeError, match="host_matching=True"):
        credly.init_app(app)


def test_a_blueprint_of_the_same_name_is_named() -> None:
    app, credly = bare()
    SQLAlchemy().init_app(app)
    app.register_blueprint(Blueprint("credly", __name__))

    with pytest.raises(RuntimeError, match="Rename it"):
        credly.init_app(app)


def test_a_table_of_the_same_name_is_named() -> None:
    app, credly = bare()
    db = SQLAlchemy()
    sa.Table("credly_account", db.metadata, sa.Column("id", sa.Integer))
    db.init_app(app)

    with pytest.raises(RuntimeError, match="'credly_account', a name .* Rename it"):
        credly.init_app(app)

    assert list(db.metadata.tables) == ["credly_account"]


def test_tables_that_the_host_has_read_from_its_database_are_ours(host: Host) -> None:
    app, credly = bare(
        SQLALCHEMY_DATABASE_URI=host.app.config["SQLALCHEMY_DATABASE_URI"]
    )
    db = SQLAlchemy(app)

    with app.app_context():
        db.session.execute(sa.text("ALTER TABLE credly_issuance DROP COLUMN look_ups"))
        db.reflect()
        credly.init_app(app)


def test_it_does_not_start_without_a_guard() -> None:
    app, _ = bare()
    credly = Credly()
    credly.courses(lambda: [])

    with pytest.raises(RuntimeError, match="with '@credly.is_admin'"):
        credly.init_app(app)


def test_it_does_not_start_without_courses() -> None:
    app, _ = bare()
    credly = Credly()
    credly.is_admin(lambda: True)

    with pytest.raises(RuntimeError, match="with '@credly.courses'"):
        credly.init_app(app)


def test_an_app_without_it_is_told_so() -> None:
    with (
        Flask(__name__).app_context(),
        pytest.raises(RuntimeError, match=r"Call 'credly.init_app\(app\)'"),
    ):
        get_state()


def test_hooks_are_returned_as_they_were() -> None:
    credly = Credly()

    def hook() -> bool:
        return True

    assert credly.is_admin(hook) is hook
    assert credly.courses(hook) is hook
    assert credly.member(hook) is hook


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"id": ""}, "must be a string of 1 to 191 characters"),
        ({"id": "x" * 192}, "must be a string of 1 to 191 characters"),
        ({"id": None}, "must be a string of 1 to 191 characters"),
        ({"id": True}, "must be a string of 1 to 191 characters"),
        ({"id": "py\x00101"}, "must be a string of 1 to 191 characters"),
        ({"title": None}, "Course 'py-101' has title None"),
        ({"kind": "webinar"}, "has kind 'webinar'"),
    ],
)
def test_a_course_that_cannot_be_one_says_why(
    given: dict[str, t.Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Course(**{"id": "py-101", "title": "Python 101", **given})


def test_an_integer_is_as_good_as_a_string_for_a_courses_id() -> None:
    assert Course(1, "Python 101") == Course("1", "Python 101")  # type: ignore[arg-type]


class Plain(enum.Enum):
    PATH = "learning_path"


class Mixed(str, enum.Enum):  # noqa: UP042
    PATH = "learning_path"


@pytest.mark.parametrize("kind", [Plain.PATH, Mixed.PATH])
def test_a_courses_kind_may_come_from_an_enumeration(
    make_host: MakeHost, credly: CredlySimulator, kind: t.Any
) -> None:
    host = make_host(courses=lambda: [Course("data", "Data path", kind=kind)])

    with host.app.app_context():
        connect(host, credly)

    page = host.app.test_client().get("/integrations/credly?mapping=new").text
    assert 'value="learning_path:data"' in page


def test_two_apps_share_one_db_and_one_extension() -> None:
    db = SQLAlchemy()
    (one, credly), (two, _) = bare(), bare(CREDLY_PLATFORM_NAME="Two")

    for app in (one, two):
        db.init_app(app)
        credly.init_app(app)

        with app.app_context():
            db.create_all()
            assert db.session.query(Issuance).all() == []

    assert one.extensions["credly"] is not two.extensions["credly"]
    assert two.extensions["credly"].settings.platform_name == "Two"

    for app in (one, two):
        with app.app_context():
            db.session.remove()
            db.engine.dispose()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("CREDLY_SANDBOX", ["yes", 1, None]),
        (
            "CREDLY_API_URL",
            [
                "",
                "api.credly.com",
                "http://api.credly.com/v1",
                "https://",
                "https://user@example.org",
                "https://example.org/?x=1",
                "https://example.org:port",
                "https://:pass-word@example.org",
                7,
            ],
        ),
        ("CREDLY_TOKEN_URL", ["http://www.credly.com/oauth/token", None]),
        (
            "CREDLY_REDIS_URL",
            [
                "localhost:6379",
                "http://localhost",
                "redis://h:port/0",
                # A password that is not encoded: it would be taken for a path.
                "redis://:12/ab@h:6379/0",
                6379,
            ],
        ),
        ("CREDLY_QUEUE", ["", "a queue", 7, None, rq.Queue(connection=redis.Redis())]),
        ("CREDLY_RETRY_DELAY", ["60", -1, True, float("nan"), None]),
        ("CREDLY_TIMEOUT", [0, "10", 1000]),
        ("CREDLY_CONCURRENCY", [0, 65, 1.5, "4", True]),
        ("CREDLY_BATCH_SIZE", [0, 51, 1.5, "4", True, None]),
        ("CREDLY_MAX_PER_SECOND", [0, -1, "5", True, float("nan"), 10_000]),
        (
            "CREDLY_ENCRYPTION_KEYS",
            ["short", [], "", ["x" * 44], 7, [7], [b"short"], b"\xff"],
        ),
        (
            "CREDLY_URL_PREFIX",
            [
                *("", "/", "//", "integrations", "/a b", "/a\x7f", " /a", None),
                *("/<slug>", "/a?b", "/a#b", "//evil.example.org", "/a//b", "/a//"),
                *("/..", "/a/../b", "/./a", "/a%20b", "/a\\b", "/a|b", "/{a}"),
                # Where the app's own files are.
                *("/static", "/static/", "/static/badges"),
            ],
        ),
        (
            "WTF_CSRF_FIELD_NAME",
            [
                *("course", "key", "client_secret", "email", "undo", "template_text"),
                *("since", "run"),
            ],
        ),
        ("CREDLY_LAYOUT", ["", "base.jinja", "base.txt", None]),
        ("CREDLY_HOST", ["", "https://admin.example.org", "<host>", "a b", 7]),
        ("CREDLY_HEALTH", [1, "true", None]),
        ("CREDLY_PLATFORM_NAME", [None, 7]),
        ("CREDLY_LANGUAGE", ["xx", "", "Deutsch", 7, ["de"]]),
        ("CREDLY_LOG_DAYS", [0, -1, 1.5, "90", True, 40_000]),
        ("CREDLY_PERSONAL_DATA_DAYS", [0, -1, 1.5, "90", True, 40_000]),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(
    key: str, values: list[t.Any]
) -> None:
    for value in values:
        app, credly = bare(**{key: value})

        if key == "CREDLY_ENCRYPTION_KEYS" and value is None:
            continue

        SQLAlchemy().init_app(app)

        with pytest.raises(ValueError, match=f"^{key} must be "):
            credly.init_app(app)


@pytest.mark.parametrize(
    "prefix", ["/a", "/admin/badges", "/statics", "/a-b/c_d", "/intégration", "/a.b/~c"]
)
def test_the_pages_are_where_they_shall_be(make_host: MakeHost, prefix: str) -> None:
    client = make_host(CREDLY_URL_PREFIX=prefix).app.test_client()
    page = client.get(f"{prefix}/credly")
    assert page.status_code == 200
    (sheet,) = re.findall(r'href="([^"]*credly\.css[^"]*)"', page.text)
    assert client.get(sheet, buffered=True).status_code == 200


def test_files_of_the_apps_own_in_the_place_of_ours_are_an_error() -> None:
    _, credly = bare()
    app = Flask(__name__, static_url_path="/integrations/static")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy().init_app(app)

    with pytest.raises(ValueError, match=r"^CREDLY_URL_PREFIX must be .*another"):
        credly.init_app(app)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FLASK_CREDLY_SANDBOX", "True", "in an environment variable: true or false"),
        ("FLASK_CREDLY_LOG_DAYS", "None", "in an environment variable: null"),
        ("FLASK_CREDLY_MAX_PER_SECOND", "None", "in an environment variable: null"),
    ],
)
def test_a_wrong_value_of_the_environment_says_how_it_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    app, credly = bare()
    app.config.from_prefixed_env()
    SQLAlchemy().init_app(app)

    with pytest.raises(ValueError, match=said):
        credly.init_app(app)


@pytest.mark.parametrize("what", ["list", "one"])
def test_keys_are_taken_as_bytes_too(make_host: MakeHost, what: str) -> None:
    key = Fernet.generate_key()
    config = make_host(
        CREDLY_ENCRYPTION_KEYS=[key] if what == "list" else key
    ).app.config
    sealed = keys.seal(config, "secret", "x", "token")
    config["CREDLY_ENCRYPTION_KEYS"] = key.decode()

    assert keys.unseal(config, sealed, "x", "token") == "secret"


def test_a_function_that_returns_no_queue_is_said_and_breaks_no_page(
    make_host: MakeHost, credly: CredlySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host(CREDLY_QUEUE=lambda app: "credly")

    with host.app.app_context():
        connect(host, credly)
        host.db.session.remove()

    page = host.app.test_client().get("/integrations/credly")
    assert page.status_code == 200
    assert "Redis cannot be reached" in page.text
    said = "The function in CREDLY_QUEUE must return an rq.Queue, not str."
    assert said in caplog.text

    caplog.clear()
    host.state.web_queue.silent_until = 0
    host.complete()
    assert said in caplog.text
    assert host.app.test_cli_runner().invoke(args=["credly", "status"]).exit_code == 0


def test_a_wrong_secret_value_is_not_repeated() -> None:
    for key in ("CREDLY_ENCRYPTION_KEYS", "CREDLY_REDIS_URL"):
        app, credly = bare(**{key: "pass-word"})
        SQLAlchemy().init_app(app)

        with pytest.raises(ValueError, match=key) as caught:
            credly.init_app(app)

        assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CREDLY_API_URL", "https://id:pass-word@api.credly.com/v1"),
        ("CREDLY_TOKEN_URL", "https://www.credly.com/?client_secret=pass-word"),
        ("CREDLY_QUEUE", "redis://:pass-word@cache/0"),
        ("CREDLY_QUEUE", ["redis://:pass-word@cache/0"]),
        ("CREDLY_REDIS_URL", b"redis://:pass-word@cache/0"),
        ("CREDLY_REDIS_URL", "redis://:12/pass-word@cache/0"),
        ("CREDLY_HOST", "https://admin:pass-word/@pass-word@example.org"),
        ("CREDLY_URL_PREFIX", "https://admin:pass-word@example.org"),
    ],
)
def test_a_password_in_a_wrong_value_is_not_repeated(key: str, value: t.Any) -> None:
    app, credly = bare(**{key: value})
    SQLAlchemy().init_app(app)

    with pytest.raises(ValueError, match=key) as caught:
        credly.init_app(app)

    assert "pass-word" not in str(caught.value)


def test_the_sandbox_has_its_own_addresses(make_host: MakeHost) -> None:
    settings = make_host(CREDLY_SANDBOX=True).state.settings

    assert settings.api_url == "https://sandbox-api.credly.com/v1"
    assert settings.token_url == "https://sandbox.credly.com/oauth/token"


def test_plain_http_is_for_this_machine_only(make_host: MakeHost) -> None:
    host = make_host(CREDLY_API_URL="http://127.0.0.1:8001/v1/")

    assert host.state.settings.api_url == "http://127.0.0.1:8001/v1"


# A module more is a little more to load in each process of a host's: one that only a
# command or a worker needs is imported there.
MOST_MODULES = 38


def test_a_web_process_loads_nothing_that_it_does_not_need() -> None:
    code = """
import json, sys
import flask_sqlalchemy, flask_wtf
from flask import Flask
from flask_credly import Credly
app = Flask("app")
app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://")
flask_sqlalchemy.SQLAlchemy().init_app(app)
credly = Credly()
credly.courses(list)
credly.is_admin(lambda: True)
credly.init_app(app)
print(json.dumps(list(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(found.stdout))
    ours = {name for name in loaded if name.split(".")[0] == "flask_credly"}
    heavy = {"rq", "redis", "requests", "urllib3", "authlib", "cryptography"}
    rooms = ("credly", "accounts", "models", "doctor", "cli", "jobs", "testing")
    later = {f"flask_credly.{name}" for name in (*rooms, "admin.pages")}

    assert heavy & loaded == set()
    assert later & ours == set()
    assert len(ours) <= MOST_MODULES


def test_what_models_say_of_their_columns_is_what_the_tables_have() -> None:
    for mapper in Base.registry.mappers:
        said = {
            name: set(t.get_args(inner) or [inner])
            for name, kind in t.get_type_hints(mapper.class_).items()
            if name in mapper.columns
            for inner in t.get_args(kind)
        }
        table = t.cast(sa.Table, mapper.local_table)

        assert said.keys() == set(table.columns.keys())

        for column in table.columns:
            kinds = {t.get_origin(each) or each for each in said[column.name]}
            plain = getattr(column.type, "impl_instance", column.type)
            python = dict if isinstance(plain, sa.JSON) else plain.python_type
            expected = {python, type(None)} if column.nullable else {python}
            assert kinds == expected, column


def test_a_page_of_a_host_shows_the_card_without_having_shown_a_page_of_ours() -> None:
    code = """
import sys
import flask_sqlalchemy
from flask import Flask, render_template_string
from flask_credly import Credly
app = Flask("app")
app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
db = flask_sqlalchemy.SQLAlchemy(app)
credly = Credly()
credly.courses(list)
credly.is_admin(lambda: True)
credly.init_app(app)
app.add_url_rule("/", "own", lambda: render_template_string(
    "{{ credly_assets() }}{{ credly_card() }}{{ credly_badges('1') }}"
))
with app.app_context():
    db.create_all()
client = app.test_client()
with client.get("/integrations/static/credly.css") as answer:
    assert answer.status_code == 200
assert "flask_credly.admin.pages" not in sys.modules
assert "Credly" in client.get("/").text
assert client.post("/integrations/credly/pause").status_code == 303
assert client.get("/integrations/credly").status_code == 200
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], text=True)

    assert found.returncode == 0


def test_a_completion_needs_no_classes_of_the_tables() -> None:
    code = """
import datetime, sys
import flask_sqlalchemy
import sqlalchemy as sa
from flask import Flask
from flask_credly import course_completed, Credly, Member, tables
app = Flask("app")
app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://")
app.config["CREDLY_REDIS_URL"] = "redis://127.0.0.1:1"
db = flask_sqlalchemy.SQLAlchemy(app)
credly = Credly()
credly.courses(list)
credly.is_admin(lambda: True)
credly.init_app(app)
now, ours = datetime.datetime.now(datetime.UTC), {"tenant": "default"}
with app.app_context():
    db.create_all()
    for table, row in (
        (tables.ACCOUNT, {"organization_id": "o", "client_id": "c", "generation": "g",
                          "client_secret": "s", "connected_at": now}),
        (tables.TEMPLATE, {"id": "t", "name": "Badge"}),
        (tables.MAPPING, {"kind": "course", "course_id": "1", "course_title": "One",
                          "template_id": "t"}),
    ):
        db.session.execute(sa.insert(table), ours | row)
    member = Member("1", "ada@example.org", "Ada", "Example")
    course_completed.send(app, member=member, course_id="1")
    db.session.commit()
    rows = db.session.scalar(sa.select(sa.func.count()).select_from(tables.ISSUANCE))
print(rows, "flask_credly.models" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert found.stdout.split() == ["1", "False"]


@every_database
def test_every_constraint_has_its_fixed_name(host: Host) -> None:
    with host.app.app_context():
        unique = sa.inspect(host.db.engine).get_unique_constraints("credly_issuance")

    assert sorted(str(constraint["name"]) for constraint in unique) == [
        "uq_credly_issuance_badge_id",
        "uq_credly_issuance_completion",
    ]


def test_a_naive_time_is_never_stored() -> None:
    import datetime as dt

    with pytest.raises(ValueError, match="time zone"):
        UTCDateTime().process_bind_param(dt.datetime(2026, 11, 1), t.cast(t.Any, None))


def test_status_in_numbers(connected: Connected) -> None:
    import json

    host, credly, _ = connected
    runner = host.app.test_cli_runner()
    host.complete("1")
    host.drain()
    host.complete("2")
    found = json.loads(runner.invoke(args=["credly", "status", "--json"]).output)

    assert {
        "connection": "connected",
        "paused_until": None,
        "pending": 1,
        "issued": 1,
        "failed": 0,
        "held": 0,
        "accepted": 0,
        "unaccepted": 1,
        "revoked": 0,
        "workers": None,
        "copy": False,
        "unrecorded": 0,
        "unrecorded_since": None,
    } == {key: value for key, value in found.items() if key != "oldest_pending_seconds"}
    assert found["oldest_pending_seconds"] in (0, 1)
    assert "connection" in runner.invoke(args=["credly", "status"]).output


def test_status_without_a_connection(host: Host) -> None:
    found = host.app.test_cli_runner().invoke(args=["credly", "status", "--json"])

    assert '"connection": "none"' in found.output


def test_sync_by_command(connected: Connected) -> None:
    host, credly, _ = connected
    credly.add_template("Another")
    runner = host.app.test_cli_runner()

    assert "Active badge templates: 2." in runner.invoke(args=["credly", "sync"]).output

    credly.fail("templates", status=503)
    failed = runner.invoke(args=["credly", "sync"])

    assert failed.exit_code == 1
    assert "could not be loaded" in failed.output


def test_sync_without_a_connection_says_what_to_do(host: Host) -> None:
    failed = host.app.test_cli_runner().invoke(args=["credly", "sync"])

    assert failed.exit_code == 1
    assert "connect it at /integrations/credly." in failed.output


@every_database
@pytest.mark.parametrize("none", ["99", "9" * 30])
def test_a_retry_of_a_badge_that_is_not_there_says_so(
    connected: Connected, none: str
) -> None:
    connected.host.complete()
    runner = connected.host.app.test_cli_runner()
    number = str(connected.host.row().id)
    failed = runner.invoke(args=["credly", "retry", number, none])

    assert failed.exit_code == 1
    assert f"There is no badge {none}." in failed.output
    assert runner.invoke(args=["credly", "retry", number]).exit_code == 0


def test_sweep_without_redis_says_so(connected: Connected) -> None:
    connected.host.complete()
    failed = connected.host.app.test_cli_runner().invoke(args=["credly", "sweep"])

    assert failed.exit_code == 1
    assert "CREDLY_REDIS_URL" in failed.output


def test_a_worker_without_redis_says_so(host: Host) -> None:
    failed = host.app.test_cli_runner().invoke(args=["credly", "worker", "--burst"])

    assert failed.exit_code == 1
    assert "CREDLY_REDIS_URL" in failed.output


@every_database
@pytest.mark.parametrize("command", ["status", "sync", "sweep", "export-member 42"])
def test_a_command_without_the_tables_names_the_doctor(
    host: Host, command: str
) -> None:
    with host.app.app_context():
        host.db.drop_all()

    failed = host.app.test_cli_runner().invoke(args=["credly", *command.split()])

    assert failed.exit_code == 1
    assert "flask db upgrade" in failed.output
    assert "flask credly doctor" in failed.output
    assert "Traceback" not in failed.output


def test_an_error_in_a_hooks_own_query_is_seen(
    make_host: MakeHost, credly: CredlySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    def past(*given: t.Any) -> t.Any:
        host.db.session.execute(sa.text("SELECT * FROM no_such_table"))

    host = make_host(past_completions=past)

    with host.app.app_context():
        connect(host, credly)

    failed = host.app.test_cli_runner().invoke(args=["credly", "backfill"])

    assert failed.exit_code == 1
    assert "@credly.past_completions hook failed" in failed.output
    assert "no_such_table" in caplog.text


def test_a_command_does_not_warn_of_a_derived_key(
    make_host: MakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the worker, which runs for long."""
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    runner = make_host().app.test_cli_runner()
    runner.invoke(args=["credly", "status"])
    assert caplog.messages == []

    runner.invoke(args=["credly", "worker", "--burst"])
    assert [message[:35] for message in caplog.messages] == [
        "CREDLY_ENCRYPTION_KEYS is not set. "
    ]


def test_a_setting_that_resembles_none_of_ours_is_the_hosts_own(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    make_host(CREDLY_HELP_DESK_ADDRESS="help@example.org")

    assert "Unknown setting" not in caplog.text


def test_a_derived_key_is_warned_of_once(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    make_host(CREDLY_ENCRYPTION_KEYS=["MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="])
    assert caplog.messages == []

    make_host()
    assert [message[:35] for message in caplog.messages] == [
        "CREDLY_ENCRYPTION_KEYS is not set. "
    ]


@pytest.mark.parametrize(
    ("secret", "weak"),
    [
        ("dev", True),
        ("a key for tests", True),
        (b"dev", True),
        ("a" * 64, True),
        ("change-me-in-production", True),
        ("my-super-secret-key-0123456789", True),
        ("192b9bdd22ab9ed4d12e236c78afcb9a", False),
        (bytes(range(100, 132)), False),
    ],
)
def test_a_secret_key_that_can_be_guessed_is_warned_of_where_it_encrypts(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture, secret: t.Any, weak: bool
) -> None:
    make_host(SECRET_KEY=secret)
    assert ("SECRET_KEY is weak" in caplog.text) is weak

    caplog.clear()
    key = "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="
    make_host(SECRET_KEY=secret, CREDLY_ENCRYPTION_KEYS=[key])
    assert caplog.messages == []


KEYS = "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "config", "warned"),
    [
        # Nobody reads these.
        ({"CREDLY_REDIS_URL": "redis://:pass-word@cache/0"}, {}, ["CREDLY_REDIS_URL"]),
        ({"CREDLY_SANDBOX": "true"}, {}, ["CREDLY_SANDBOX"]),
        ({"FLASK_CREDLY_SANDBOX": "true"}, {}, ["FLASK_CREDLY_SANDBOX"]),
        ({"CREDLY_ENCRYPTION_KEYS": KEYS}, {}, ["CREDLY_ENCRYPTION_KEYS"]),
        ({"CREDLY_REDIS_UR": "redis://cache"}, {}, ["CREDLY_REDIS_UR"]),
        # The configuration says otherwise.
        (
            {"CREDLY_SANDBOX": "true"},
            {"CREDLY_SANDBOX": False},
            ["CREDLY_SANDBOX"],
        ),
        (
            {"CREDLY_QUEUE": "badges", "FLASK_CREDLY_QUEUE": "credly"},
            {"CREDLY_QUEUE": "credly"},
            ["CREDLY_QUEUE"],
        ),
        # Somebody has read these, in whatever way.
        ({"FLASK_CREDLY_SANDBOX": "true"}, {"CREDLY_SANDBOX": True}, []),
        ({"CREDLY_SANDBOX": "True"}, {"CREDLY_SANDBOX": True}, []),
        ({"CREDLY_SANDBOX": "1"}, {"CREDLY_SANDBOX": True}, []),
        ({"CREDLY_TIMEOUT": "7"}, {"CREDLY_TIMEOUT": 7}, []),
        ({"CREDLY_TIMEOUT": "7.5"}, {"CREDLY_TIMEOUT": 7.5}, []),
        ({"CREDLY_LOG_DAYS": "null"}, {"CREDLY_LOG_DAYS": None}, []),
        ({"CREDLY_QUEUE": "badges"}, {"CREDLY_QUEUE": "badges"}, []),
        ({"CREDLY_QUEUE": '"badges"'}, {"CREDLY_QUEUE": "badges"}, []),
        (
            {"CREDLY_ENCRYPTION_KEYS": f"{KEYS}, {KEYS}"},
            {"CREDLY_ENCRYPTION_KEYS": [KEYS, KEYS]},
            [],
        ),
        # Not ours.
        ({"CREDLY_HELP_DESK": "1", "FLASK_DEBUG": "1", "REDIS_URL": "x"}, {}, []),
    ],
)
def test_an_environment_variable_that_no_setting_took_up_is_warned_of(
    make_host: MakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    config: dict[str, t.Any],
    warned: list[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    host = make_host(
        setup=lambda app, _: app.config.pop("CREDLY_REDIS_URL") and None, **config
    )
    said = [each for each in caplog.messages if "environment variable" in each]

    assert [each.split()[3] for each in said] == warned
    assert "pass-word" not in caplog.text
    assert KEYS not in caplog.text

    with host.app.app_context():
        found = doctor.examine(host.state)["settings"]

    assert (found.status == "warning") is bool(warned)
    assert all(name in found.detail for name in warned)
    assert "pass-word" not in found.detail + str(found.hint)


def test_what_is_set_after_init_app_is_named(make_host: MakeHost) -> None:
    host = make_host()
    host.app.config["CREDLY_SANDBOX"] = True

    with host.app.app_context():
        found = doctor.examine(host.state)["settings"]

    assert found.status == "warning"
    assert "CREDLY_API_URL, CREDLY_TOKEN_URL" in found.detail
    assert found.hint == "Read the configuration before credly.init_app(app)."
