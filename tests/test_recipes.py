"""The pages in docs/recipes hold what they say: their code, files and commands are
taken from them and run.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import typing as t
import urllib.request
import uuid
from concurrent import futures
from email.message import EmailMessage

import flask_login
import flask_security
import pytest
import responses
import sqlalchemy as sa
import yaml
from conftest import connect as connect_host
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from conftest import missing
from flask import Config
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm

from example_app.redis_server import free_port
from example_app.redis_server import own_redis
from flask_credly import accounts
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import keys
from flask_credly import Member
from flask_credly.models import Account
from flask_credly.models import Base
from flask_credly.models import Installation
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.tables import copy_tables
from flask_credly.testing import CredlySimulator
from flask_credly.testing import Organization
from tests.support.browser import choose
from tests.support.browser import click
from tests.support.browser import expect_said
from tests.support.browser import make_site as make_site
from tests.support.browser import MakeSite
from tests.support.browser import open_page as open_page
from tests.support.browser import OpenPage
from tests.support.browser import watches as watches

RECIPES = pathlib.Path(__file__).parent.parent / "docs/recipes"

KEY = "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="
ORGANIZATION_ID = "0a0a0a0a-0000-4000-8000-000000000001"
CLIENT_ID = "an example id"
CLIENT_SECRET = "an example secret"
TEMPLATE_ID = "0a0a0a0a-0000-4000-8000-000000000002"

CONVENTION = {
    "ix": "i_%(column_0_label)s",
    "uq": "u_%(table_name)s_%(column_0_name)s",
    "fk": "f_%(table_name)s_%(column_0_name)s",
    "pk": "p_%(table_name)s",
}
"""A host's own."""


def blocks(page: str, language: str = "python") -> list[str]:
    """Read the code of one language that a page holds."""
    return re.findall(rf"```{language}\n(.*?)```", (RECIPES / page).read_text(), re.S)


(GUNICORN_CONFIG,) = blocks("gunicorn.md")
(GUNICORN,) = blocks("gunicorn.md", "sh")
(MIGRATING_APP,) = blocks("migrations.md")
FIRST_TIME, UPGRADE = blocks("migrations.md", "sh")


def run_code(page: str, number: int = 0, **names: t.Any) -> dict[str, t.Any]:
    """Run code of a page, with what it calls the host's."""
    names["__name__"] = "recipe"
    exec(compile(blocks(page)[number], page, "exec"), names)
    return names


class Site:
    """A folder with a host's files, and programs that run there."""

    def __init__(self, folder: pathlib.Path, **config: str) -> None:
        self.folder = folder
        programs = pathlib.Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "FLASK_APP": "app",
            "FLASK_SECRET_KEY": "a key for tests",
            **{f"FLASK_{key}": value for key, value in config.items()},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        }
        self._running: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, commands: str, **environment: str) -> str:
        """Run commands to their end. Get what they print."""
        done = subprocess.run(
            ["sh", "-ec", commands],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, command: str, **environment: str) -> None:
        """Start a program. It is stopped at the end, gently."""
        log = (self.folder / f"log-{len(self._running)}").open("w")

        with log:
            self._running.append(
                subprocess.Popen(
                    shlex.split(command),
                    cwd=self.folder,
                    env={**self.environment, **environment},
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )

    def stop(self) -> None:
        for process in self._running:
            process.terminate()

        for process in self._running:
            process.wait(timeout=30)

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("log-*"))


@pytest.fixture
def site(
    tmp_path: pathlib.Path, database: str, redis_url: str, simulator: CredlySimulator
) -> cabc.Iterator[Site]:
    """A site with a database, a Redis and a Credly, all real but the last."""
    with simulator.serve() as server:
        made = Site(
            tmp_path,
            SQLALCHEMY_DATABASE_URI=database,
            CREDLY_REDIS_URL=redis_url,
            CREDLY_QUEUE=f"credly-{uuid.uuid4().hex}",
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
            CREDLY_RETRY_DELAY="0",
            CREDLY_ENCRYPTION_KEYS=KEY,
        )

        try:
            yield made
        finally:
            made.stop()

    assert simulator.problems == []


@pytest.fixture
def simulator() -> CredlySimulator:
    credly = CredlySimulator(
        organization_id=ORGANIZATION_ID,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )
    credly.add_template("Python Badge", id=TEMPLATE_ID)
    return credly


@pytest.fixture
def engine(database: str) -> cabc.Iterator[sa.Engine]:
    made = sa.create_engine(database)
    yield made
    made.dispose()


def names_in(engine: sa.Engine) -> set[str]:
    """Read the names of all constraints and indexes of our tables."""
    found: set[str | None] = set()
    inspector = sa.inspect(engine)

    for table in Base.metadata.tables:
        found.add(inspector.get_pk_constraint(table)["name"])
        found.update(each["name"] for each in inspector.get_unique_constraints(table))
        found.update(each["name"] for each in inspector.get_foreign_keys(table))
        found.update(each["name"] for each in inspector.get_indexes(table))

    return {name for name in found if name and name != "PRIMARY"}


def names_of(metadata: sa.MetaData) -> set[str]:
    return {
        str(name)
        for table in metadata.tables.values()
        for name in (
            *(each.name for each in table.constraints),
            *(each.name for each in table.indexes),
        )
    }


def with_metadata(arguments: str) -> str:
    """Write the application of the recipe with a metadata of its own."""
    return MIGRATING_APP.replace(
        "db = SQLAlchemy()",
        "import sqlalchemy\n"
        f"db = SQLAlchemy(metadata=sqlalchemy.MetaData({arguments}))",
    )


class TestMigrations:
    @pytest.mark.slow
    @every_database
    def test_a_migration_made_on_sqlite_runs_everywhere_and_leaves_nothing_to_do(
        self, site: Site, engine: sa.Engine, database: str
    ) -> None:
        """In a host with a naming convention, comparing all that Alembic can."""
        app = with_metadata(f"None, None, {CONVENTION}")
        compare = "migrate.alembic_ctx_kwargs['compare_server_default'] = True\n"
        site.write("app.py", app + compare)
        local = f"sqlite:///{site.folder / 'local.db'}"
        site.run(FIRST_TIME, FLASK_SQLALCHEMY_DATABASE_URI=local)
        site.run("flask db upgrade")

        assert "No new upgrade operations" in site.run("flask db check")
        expected = names_of(Base.metadata)

        if engine.dialect.name == "mysql":
            expected = {name for name in expected if not name.startswith("pk_")}

        assert names_in(engine) == expected

        # Nothing has changed, so that there is nothing to upgrade.
        site.run(UPGRADE)
        (version,) = (site.folder / "migrations/versions").glob("*.py")
        assert "flask_credly" not in version.read_text()

    @pytest.mark.slow
    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_with_a_schema_of_the_hosts_its_name_is_taken_out_of_the_migration(
        self, site: Site, engine: sa.Engine, database: str
    ) -> None:
        site.write("app.py", with_metadata("'school'"))
        site.run(FIRST_TIME.replace("flask db upgrade", "true"))
        (version,) = (site.folder / "migrations/versions").glob("*.py")
        made = version.read_text()
        version.write_text(made.replace("school.credly_", "credly_"))
        site.run("flask db upgrade")

        assert "school.credly_" in made
        assert "school" not in version.read_text()
        assert "No new upgrade operations" in site.run("flask db check")

    def test_a_column_that_every_row_needs_has_a_default_in_the_database(self) -> None:
        """So that a filled table takes it, and an older process need not know it."""
        assert [
            str(column)
            for table in Base.metadata.tables.values()
            for column in table.columns
            if column.default is not None and column.server_default is None
        ] == []

    @pytest.mark.parametrize("convention", [None, CONVENTION])
    def test_names_are_ours_whatever_the_hosts_convention(
        self, convention: dict[str, str] | None
    ) -> None:
        metadata = sa.MetaData(naming_convention=convention)
        copy_tables(metadata)

        assert names_of(metadata) == names_of(Base.metadata)

    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_a_host_with_a_schema_of_its_own(
        self, database: str, engine: sa.Engine, make_host: MakeHost
    ) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE SCHEMA school"))

        def setup(app: Flask, db: SQLAlchemy) -> None:
            db.metadata.schema = "school"
            sa.Table("member", db.metadata, sa.Column("id", sa.Integer))

        host = make_host(setup=setup)

        with host.app.app_context():
            assert host.rows() == []
            assert sa.inspect(engine).get_table_names("school") == ["member"]
            assert "credly_issuance" in sa.inspect(engine).get_table_names()
            host.db.session.remove()


class Post:
    """A mail server that may be down."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.is_down = False

    def __call__(self, address: str, timeout: int) -> Post:
        if self.is_down:
            raise OSError("nothing listens there")

        return self

    def __enter__(self) -> Post:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_message(self, message: EmailMessage) -> None:
        self.mails.append(message)


class TestMail:
    def test_admins_get_one_mail_for_all_that_went_wrong(
        self, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        post = Post()
        monkeypatch.setattr("smtplib.SMTP", post)
        north = CredlySimulator()
        south = north.add_organization()
        receivers: list[t.Any] = []

        def setup(app: Flask, db: SQLAlchemy) -> None:
            app.config["SITE"] = "https://school.example"
            app.config["MAIL_FROM"] = "school@school.example"
            app.config["MAIL_SERVER"] = "mail.school.example"
            names = run_code(
                "mail.md",
                db=db,
                admins_of=lambda tenant: [f"admin@{tenant}.example"],
            )
            app.cli.add_command(names["mail_news"])
            receivers.extend((names["note_failure"], names["note_pause"]))

        def run(host: Host) -> t.Any:
            return host.app.test_cli_runner().invoke(args=["mail-news"])

        host = make_host(setup=setup, tenant=lambda: "north")
        with (
            responses.RequestsMock(assert_all_requests_are_fired=False) as mock,
            host.app.app_context(),
        ):
            north.register(mock)
            connect_one(host, "north", north)
            connect_one(host, "south", south)
            refusal = {"data": {"message": "Secret of 7."}, "metadata": None}
            north.fail("issue", times=6, status=422, body=refusal)

            for member_id in ("7", "8", "9"):
                host.complete(member_id, tenant="north")

            host.drain(2)
            post.is_down = True
            assert run(host).exit_code != 0
            post.is_down = False
            south.revoke_client()
            host.complete("7", tenant="south")
            host.drain()
            assert run(host).exit_code == 0
            assert run(host).exit_code == 0

        texts = {mail["To"]: mail.get_content() for mail in post.mails}
        assert len(post.mails) == 2
        assert texts == {
            "admin@north.example": (
                "Badges that were not issued: 3. See why:\n"
                "https://school.example/integrations/credly/badges?status=failed\n"
            ),
            "admin@south.example": (
                "The connection to Credly has expired. Connect it again:\n"
                "https://school.example/integrations/credly/connection\n"
            ),
        }

        # As in the recipe's own module, something refers to them until here.
        assert len(receivers) == 2


def connect_one(
    host: Host, tenant: str, credly: CredlySimulator | Organization
) -> None:
    state = host.app.extensions["credly"].of(tenant)
    template_id = credly.add_template("Python Badge")
    accounts.connect(
        state,
        organization_id=credly.organization_id,
        client_id=credly.client_id,
        client_secret=credly.client_secret,
    )
    accounts.add_mapping(state, COURSES[0], template_id)


SERVED = """

# Added by the test: a view that completes, and a watch over connections.
import os
from flask import current_app
from flask_credly import Member, course_completed
from redis.connection import AbstractConnection
import sqlalchemy

def complete(member_id):
    course_completed.send(
        current_app._get_current_object(),
        member=Member(member_id, f"member-{member_id}@example.org", "Ada", "Example"),
        course_id="py-101",
    )

def report():
    with open("shared", "a") as file:
        file.write("a connection of another process\\n")

@sqlalchemy.event.listens_for(sqlalchemy.Pool, "connect")
def remember(connection, record):
    record.info["process"] = os.getpid()

@sqlalchemy.event.listens_for(sqlalchemy.Pool, "checkout")
def compare(connection, record, proxy):
    if record.info["process"] != os.getpid():
        report()

send = AbstractConnection.send_packed_command

def send_packed_command(self, *args, **given):
    if self.pid != os.getpid():
        report()
    return send(self, *args, **given)

AbstractConnection.send_packed_command = send_packed_command
make_app = create_app

def create_app():
    app = make_app()

    @app.post("/complete/<member_id>")
    def view(member_id):
        complete(member_id)
        return str(os.getpid())

    if "COMPLETE_AT_START" in os.environ:
        # Opens a connection to the database, and one to Redis.
        with app.app_context():
            complete("at-start")

    return app
"""


def connect(engine: sa.Engine) -> None:
    """Connect a site whose tables are empty, and map its course."""
    now = dt.datetime.now(dt.UTC)
    config = Config("", {"CREDLY_ENCRYPTION_KEYS": KEY})
    sealed = keys.seal(config, CLIENT_SECRET, ORGANIZATION_ID, "client_secret")

    with orm.Session(engine) as session:
        session.add(Installation(id=1, key=uuid.uuid4().hex))
        session.add(
            Account(
                tenant="default",
                organization_id=ORGANIZATION_ID,
                client_id=CLIENT_ID,
                client_secret=sealed,
                generation=uuid.uuid4().hex,
                connected_at=now,
            )
        )
        session.flush()
        session.add(Template(id=TEMPLATE_ID, tenant="default", name="Python Badge"))
        session.flush()
        session.add(
            Mapping(
                tenant="default",
                kind="course",
                course_id="py-101",
                course_title="Python 101",
                template_id=TEMPLATE_ID,
            )
        )
        session.commit()


def complete_for_many(url: str, number: int = 30) -> set[str]:
    """Complete a course for many members at once, each twice, and go on until two
    processes have answered.

    :return: The members' addresses.
    """
    processes: set[str] = set()
    done: set[str] = set()
    until = time.monotonic() + 60

    def complete(member_id: str) -> None:
        request = urllib.request.Request(f"{url}/complete/{member_id}", method="POST")

        with urllib.request.urlopen(request, timeout=30) as answer:
            processes.add(answer.read().decode())

        done.add(f"member-{member_id}@example.org")

    with futures.ThreadPoolExecutor(8) as pool:
        while len(done) < number or len(processes) < 2:
            assert time.monotonic() < until, processes
            start = len(done)
            members = [str(each) for each in range(start, start + number)]
            list(pool.map(complete, [*members, *members]))

    return done


def wait_until_served(url: str, site: Site) -> None:
    until = time.monotonic() + 60

    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/integrations/static/credly.css"):
                return
        except OSError:
            time.sleep(0.1)

    pytest.fail(site.logs())


class TestGunicorn:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("database", "config"),
        [
            ("postgresql", GUNICORN_CONFIG),
            ("sqlite", GUNICORN_CONFIG),
            ("sqlite", ""),
        ],
        indirect=["database"],
        ids=["postgresql-preloaded", "sqlite-preloaded", "sqlite"],
    )
    def test_every_completion_is_one_badge(
        self, site: Site, engine: sa.Engine, simulator: CredlySimulator, config: str
    ) -> None:
        members = self.serve(site, engine, config)
        site.run("flask credly worker --burst")

        assert sorted(badge["recipient_email"] for badge in simulator.badges) == sorted(
            [*members, "member-at-start@example.org"]
        )
        assert not (site.folder / "shared").exists()

    @pytest.mark.slow
    def test_without_post_fork_a_connection_has_two_processes(
        self, site: Site, engine: sa.Engine
    ) -> None:
        """What the page's post_fork is for, and that the test above would notice."""
        self.serve(site, engine, "preload_app = True")

        assert (site.folder / "shared").exists()

    def test_nothing_is_opened_while_the_application_is_made(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key, value in site.environment.items():
            monkeypatch.setenv(key, value)

        app = run_code("migrations.md")["create_app"]()

        with app.app_context():
            (opened,) = app.extensions["sqlalchemy"].engines.values()
            assert opened.pool.status().startswith(
                "Pool size: 5  Connections in pool: 0"
            )

        assert app.extensions["credly"].web_queue.queue is None

    def serve(self, site: Site, engine: sa.Engine, config: str) -> set[str]:
        Base.metadata.create_all(engine)
        return serve(site, engine, GUNICORN, config, COMPLETE_AT_START="1")


LIST = "/integrations/"
CONNECT = "/integrations/credly"


class TestFlaskLogin:
    @pytest.fixture
    def host(self, make_host: MakeHost) -> Host:
        names: dict[str, t.Any] = {}

        def setup(app: Flask, db: SQLAlchemy) -> None:
            class User(flask_login.UserMixin, db.Model):
                id = sa.Column(sa.Integer, primary_key=True)
                email = sa.Column(sa.String(100))
                first_name = sa.Column(sa.String(100))
                last_name = sa.Column(sa.String(100))
                is_admin = sa.Column(sa.Boolean)

            names.update(
                run_code("flask-login.md", credly=Credly(), db=db, User=User), User=User
            )
            names["login"].init_app(app)
            names["login"].user_loader(lambda id: db.session.get(User, int(id)))

            @app.get("/log-in", defaults={"number": 0})
            @app.get("/log-in/<int:number>")
            def log_in(number: int) -> str:
                if number:
                    flask_login.login_user(db.session.get(User, number))

                return "Log in"

            @app.post("/complete")
            def complete() -> str:
                course_completed.send(
                    app,
                    member=names["member_of"](flask_login.current_user),
                    course_id="py-101",
                )
                return "Well done."

        host = make_host(
            is_admin=lambda: names["is_admin"](),
            member=lambda id: names["member"](id),
            setup=setup,
        )

        with host.app.app_context():
            for name in ("admin", "ada"):
                user = names["User"](
                    email=f"{name}@example.org",
                    first_name=name.title(),
                    last_name="Example",
                    is_admin=name == "admin",
                )
                host.db.session.add(user)
                host.db.session.flush()

            host.db.session.commit()

        return host

    def test_a_visitor_is_sent_to_the_login(self, host: Host) -> None:
        client = host.app.test_client()
        login = "/log-in?next=%2Fintegrations%2F"

        assert client.get(LIST).location == login
        assert client.post(CONNECT).status_code == 302
        answer = client.get(LIST, headers={"HX-Request": "true"})
        assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, login)

    @pytest.mark.parametrize(("number", "status"), [(1, 200), (2, 403)])
    def test_an_admin_is_let_in_and_a_member_is_not(
        self, host: Host, number: int, status: int
    ) -> None:
        client = host.app.test_client()
        client.get(f"/log-in/{number}")

        assert client.get(LIST).status_code == status

    def test_a_members_badge_has_the_address_of_the_retry(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        connect_host(host, credly)
        client = host.app.test_client()
        client.get("/log-in/2")
        client.post("/complete")
        assert host.row().member_id == "2"

        credly.fail("issue", status=422)
        host.db.session.execute(sa.text("UPDATE user SET email = 'new@example.org'"))
        host.db.session.commit()
        host.drain()

        assert [badge["recipient_email"] for badge in credly.badges] == [
            "new@example.org"
        ]


class TestFlaskSecurity:
    @pytest.fixture
    def client(self, make_host: MakeHost) -> FlaskClient:
        names = run_code("flask-security.md", credly=Credly())
        datastores: list[t.Any] = []

        def setup(app: Flask, db: SQLAlchemy) -> None:
            has_role = sa.Table(
                "roles",
                db.metadata,
                sa.Column("user_id", sa.ForeignKey("user.id")),
                sa.Column("role_id", sa.ForeignKey("role.id")),
            )

            class Role(flask_security.RoleMixin, db.Model):
                id = sa.Column(sa.Integer, primary_key=True)
                name = sa.Column(sa.String(100))

            class User(flask_security.UserMixin, db.Model):
                id = sa.Column(sa.Integer, primary_key=True)
                email = sa.Column(sa.String(100))
                first_name = sa.Column(sa.String(100))
                last_name = sa.Column(sa.String(100))
                password = sa.Column(sa.String(255))
                active = sa.Column(sa.Boolean)
                fs_uniquifier = sa.Column(sa.String(64))
                roles = orm.relationship(Role, secondary=has_role)

            datastore = flask_security.SQLAlchemyUserDatastore(db, User, Role)
            flask_security.Security(app, datastore)
            datastores.append(datastore)

        host = make_host(
            is_admin=names["is_admin"],
            setup=setup,
            SECURITY_PASSWORD_HASH="pbkdf2_sha512",
            SECURITY_PASSWORD_SALT="salt",
            SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
            WTF_CSRF_ENABLED=False,
        )

        with host.app.app_context():
            (datastore,) = datastores
            password = flask_security.hash_password("a password")

            for name, roles in (
                ("admin", [datastore.create_role(name="admin")]),
                ("ada", []),
            ):
                user = datastore.create_user(
                    email=f"{name}@example.org",
                    first_name=name.title(),
                    last_name="Example",
                    password=password,
                    roles=roles,
                )

            host.db.session.commit()
            assert names["member_of"](user) == Member(
                "2", "ada@example.org", "Ada", "Example"
            )

        return host.app.test_client()

    def test_a_visitor_is_sent_to_the_login(self, client: FlaskClient) -> None:
        assert client.get(LIST).location == "/login?next=/integrations/"
        assert client.post(CONNECT).status_code == 302

    @pytest.mark.parametrize(("name", "status"), [("admin", 200), ("ada", 403)])
    def test_an_admin_is_let_in_and_a_member_is_not(
        self, client: FlaskClient, name: str, status: int
    ) -> None:
        account = {"email": f"{name}@example.org", "password": "a password"}
        assert client.post("/login", data=account).status_code == 302

        assert client.get(LIST).status_code == status


class TestFlaskTalisman:
    def test_tags_carry_the_nonce_of_the_policy(self, make_host: MakeHost) -> None:
        host = make_host()
        run_code("flask-talisman.md")["secure"](host.app)
        client = host.app.test_client()
        plain = client.get(LIST)
        assert plain.location == "https://localhost/integrations/"

        page = client.get(LIST, base_url="https://localhost")
        policy = page.headers["Content-Security-Policy"]
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))

        assert "default-src 'self'" in policy
        tags = re.findall(r"<(?:script|link rel=.stylesheet.)[^>]*>", page.text)
        assert len(tags) == 3
        assert [tag for tag in tags if f' nonce="{nonce}"' not in tag] == []

    @pytest.mark.parametrize("scripts", ["'self'", "'strict-dynamic'"])
    def test_the_pages_work_under_the_policy(
        self, make_site: MakeSite, open_page: OpenPage, scripts: str
    ) -> None:
        site = make_site()
        names = run_code("flask-talisman.md")
        names["policy"]["script-src"] = scripts
        names["policy"]["img-src"].append("https://images.credly.com")
        site.host.app.debug = True  # no redirect to https
        names["secure"](site.host.app)
        site.connect()
        page = open_page(site, CONNECT)
        choose(page, "Python 101", "Python Badge")
        click(page, "Save mapping")
        expect_said(page, "Mapping saved: Python 101 to Python Badge.")

        assert page.evaluate("typeof htmx") == "object"
        assert page.url.endswith(CONNECT)


class TestSeveralApps:
    @pytest.mark.slow
    def test_each_has_its_ledger_and_its_workers(
        self, site: Site, simulator: CredlySimulator
    ) -> None:
        site.write("app.py", blocks("several-apps.md")[0])
        config = {
            key.removeprefix("FLASK_"): value
            for key, value in site.environment.items()
            if key.startswith("FLASK_") and key != "FLASK_CREDLY_QUEUE"
        }
        # Each sets its own.
        del site.environment["FLASK_CREDLY_QUEUE"]

        for name in ("school", "club"):
            url = f"sqlite:///{site.folder / name}.db"
            own = {**config, "SQLALCHEMY_DATABASE_URI": url}
            site.environment.update(
                {f"{name.upper()}_{key}": value for key, value in own.items()}
            )
            engine = sa.create_engine(url)
            Base.metadata.create_all(engine)
            connect(engine)

            with engine.begin() as connection:
                if name == "club":
                    connection.execute(
                        sa.text("UPDATE credly_mapping SET course_id = 'chess'")
                    )

            engine.dispose()

        site.write("complete.py", COMPLETE_IN_BOTH)
        assert site.run("python complete.py") == "credly-school credly-club\n"
        school, club = blocks("several-apps.md", "sh")[0].splitlines()

        site.run(f"{school} --burst")
        assert [badge["recipient_email"] for badge in simulator.badges] == [
            "school@example.org"
        ]
        site.run(f"{club} --burst")
        assert [badge["recipient_email"] for badge in simulator.badges] == [
            "school@example.org",
            "club@example.org",
        ]

    def test_two_extensions_keep_to_their_own_application(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        first = make_host()
        second = make_host(
            courses=lambda: [Course(id="chess", title="Chess openings")],
            is_admin=lambda: False,
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'second.db'}",
        )

        assert first.app.test_client().get(LIST).status_code == 200
        assert second.app.test_client().get(LIST).status_code == 403
        assert [course.id for course in second.state.list_courses()] == ["chess"]


COMPLETE_IN_BOTH = """
from app import create_club, create_school
from flask_credly import Member, course_completed

school, club = create_school(), create_club()
print(school.config["CREDLY_QUEUE"], club.config["CREDLY_QUEUE"])

with club.app_context():
    for app, name, course in ((school, "school", "py-101"), (club, "club", "chess")):
        member = Member(name, f"{name}@example.org", "Ada", "Example")
        course_completed.send(app, member=member, course_id=course)
"""


class TestRQ:
    @pytest.fixture
    def queued(self, site: Site, engine: sa.Engine) -> cabc.Iterator[Site]:
        """A site whose host has a job of its own, and a completion."""
        queue, setting, program = blocks("rq.md")
        own = "def greet():\n    open('greeted', 'w').close()\n"
        made = "    app.config.from_prefixed_env()"
        line = f"    {setting.strip()}\n"
        app = MIGRATING_APP.replace(made, line + made)
        assert line in app
        site.write("app.py", own + queue + app)
        site.write("program.py", f"from app import *\n{program}")
        del site.environment["FLASK_CREDLY_QUEUE"]
        Base.metadata.create_all(engine)
        connect(engine)

        with own_redis(free_port()) as url:
            site.environment |= {"REDIS_URL": url, "FLASK_REDIS_URL": url}
            site.write("complete.py", COMPLETE_BESIDE_A_JOB)
            site.run("python complete.py")
            yield site

    @pytest.mark.slow
    def test_our_worker_beside_the_hosts(
        self, queued: Site, simulator: CredlySimulator
    ) -> None:
        queued.run(f"{self.command(0)} --burst")

        assert len(simulator.badges) == 1
        assert not (queued.folder / "greeted").exists()

    @pytest.mark.slow
    def test_rqs_worker_does_both(
        self, queued: Site, simulator: CredlySimulator
    ) -> None:
        queued.run(f"{self.command(1)} --burst")

        assert len(simulator.badges) == 1
        assert (queued.folder / "greeted").exists()

    @pytest.mark.slow
    def test_the_hosts_program_does_both(
        self, queued: Site, simulator: CredlySimulator
    ) -> None:
        del queued.environment["FLASK_APP"]
        queued.run("python program.py")

        assert len(simulator.badges) == 1
        assert (queued.folder / "greeted").exists()

    def command(self, number: int) -> str:
        return blocks("rq.md", "sh")[number].strip()


COMPLETE_BESIDE_A_JOB = """
import time
import app as host
from flask_credly import Member, course_completed
from rq import Queue

app = host.create_app()
member = Member("1", "ada@example.org", "Ada", "Example")
course_completed.send(app, member=member, course_id="py-101")
queue = host.credly_queue(app)
until = time.monotonic() + 30

while not queue.count:  # a thread rings
    assert time.monotonic() < until
    time.sleep(0.01)

own = Queue("default", connection=queue.connection, serializer="json")
own.enqueue("app.greet")
"""


class TestServers:
    @pytest.fixture
    def units(self, site: Site) -> dict[str, str]:
        """The units by name, with this folder and its programs."""
        page = (RECIPES / "servers.md").read_text()
        found = re.findall(
            r"`/etc/systemd/system/(.+?)`.*?```systemd\n(.*?)```", page, re.S
        )
        programs = str(pathlib.Path(sys.executable).parent)
        return {
            name: text.replace("/srv/school/venv/bin", programs).replace(
                "/srv/school", str(site.folder)
            )
            for name, text in found
        }

    def test_systemd_understands_the_units(
        self, units: dict[str, str], tmp_path: pathlib.Path
    ) -> None:
        if not shutil.which("systemd-analyze"):
            missing("systemd", "no systemd-analyze on the PATH")

        assert len(units) == len(blocks("servers.md", "systemd")) == 4

        for name, text in units.items():
            (tmp_path / name).write_text(text)

        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_a_deployment_uses_options_that_there_are(self) -> None:
        if not shutil.which("systemd-run"):
            missing("systemd", "no systemd-run on the PATH")

        (deploy,) = [
            text for text in blocks("servers.md", "sh") if "systemd-run" in text
        ]
        (command,) = re.findall(r"^systemd-run .*?[^\\]$", deploy, re.M | re.S)
        options = [
            each.split("=")[0] for each in shlex.split(command) if each[:2] == "--"
        ]
        help_ = subprocess.run(
            ["systemd-run", "--help"], capture_output=True, text=True, check=True
        )

        assert len(options) == 5
        assert set(options) <= set(re.findall("--[a-z-]+", help_.stdout))
        subprocess.run(["sh", "-n"], input=deploy, text=True, check=True)

    @pytest.mark.slow
    def test_what_the_units_start_issues_badges(
        self,
        site: Site,
        engine: sa.Engine,
        simulator: CredlySimulator,
        units: dict[str, str],
    ) -> None:
        (settings,) = blocks("servers.md", "ini")
        assert set(re.findall(r"^(\w+)=", settings, re.M)) <= set(site.environment)
        commands = {
            name.removesuffix(".service"): command
            for name, text in units.items()
            for command in re.findall(r"^ExecStart=(.+)$", text, re.M)
        }
        Base.metadata.create_all(engine)
        web, worker = commands["school-web"], commands["school-worker@"]
        done = serve(site, engine, web)
        assert "A worker was notified." in site.run(commands["school-sweep"])
        site.start(worker)
        site.start(worker)

        assert_badges(simulator, done)

    @pytest.mark.slow
    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_what_compose_starts_issues_badges(
        self, site: Site, engine: sa.Engine, simulator: CredlySimulator
    ) -> None:
        file = yaml.safe_load(blocks("servers.md", "yaml")[0])
        services = file["services"]
        (command,) = re.findall(
            r"^CMD (\[.+\])$", blocks("servers.md", "dockerfile")[0], re.M
        )
        commands = {
            name: shlex.join(service.get("command") or json.loads(command))
            for name, service in services.items()
            if "image" not in service
        }
        assert set(commands) == {"web", "worker", "migrate"}

        for name in commands:
            assert set(services[name]["environment"]) <= set(site.environment)
            assert set(services[name]["depends_on"]) <= set(services)

        assert services["migrate"]["restart"] == "no"
        local = f"sqlite:///{site.folder / 'local.db'}"
        site.write("app.py", MIGRATING_APP)
        site.run(FIRST_TIME, FLASK_SQLALCHEMY_DATABASE_URI=local)
        site.run(commands["migrate"])
        done = serve(site, engine, commands["web"])
        site.start(commands["worker"])
        site.start(commands["worker"])

        assert_badges(simulator, done)


def serve(
    site: Site,
    engine: sa.Engine,
    command: str,
    config: str = GUNICORN_CONFIG,
    **environment: str,
) -> set[str]:
    """Serve a site with gunicorn, and complete its course for many.

    :return: The members' addresses.
    """
    site.write("app.py", MIGRATING_APP + SERVED)
    site.write("gunicorn.conf.py", config)
    connect(engine)
    address = f"127.0.0.1:{free_port()}"
    # An address in the command would go before the environment's.
    site.start(
        re.sub(r"--bind \S+", "", command),
        GUNICORN_CMD_ARGS=f"--bind {address} --workers 2 --no-control-socket",
        **environment,
    )
    wait_until_served(f"http://{address}", site)
    return complete_for_many(f"http://{address}")


def assert_badges(simulator: CredlySimulator, addresses: set[str]) -> None:
    """Wait until each of these has its badge: nobody has two, and nobody else one."""
    until = time.monotonic() + 60

    while len(simulator.badges) < len(addresses):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)

    found = sorted(badge["recipient_email"] for badge in simulator.badges)
    assert found == sorted(addresses)
