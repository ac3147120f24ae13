"""Each row of the operator's table in docs/observing.md, brought about for real."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import os
import pathlib
import re
import sqlite3
import sys
import typing as t
import uuid

import pytest
import redis
import rq
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import MakeHost
from cryptography.fernet import Fernet

from flask_credly import accounts
from flask_credly import doctor
from flask_credly.accounts import rotating
from flask_credly.errors import CredlyError
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing.poll import poll_now
from flask_credly.issuing.worker import CredlyWorker
from flask_credly.ledger import gates
from flask_credly.ledger.fitness import place
from flask_credly.models import Account
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs/observing.md"
HEAD = "| what is wrong | `flask credly doctor` | page, error log | how to fix it |"
WINDOW = "/integrations/credly"


def rows() -> dict[str, list[str]]:
    """Read the table, by its first column."""
    table = DOCUMENT.read_text().partition(HEAD)[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in lines}


class Site:
    """A host in which all is well, with a worker."""

    def __init__(self, connected: Connected, redis_url: str) -> None:
        self.host, self.credly, self.template_id = connected
        self.app = self.host.app
        self.queue = notifier.make_queue(
            self.app, self.host.state.settings, redis.Redis.from_url(redis_url)
        )
        self.host.state.web_queue.queue = self.queue
        self.worker = CredlyWorker(self.app, self.queue)
        self.worker.register_birth()  # type: ignore[no-untyped-call]
        self.worker._ring(self.host.state)

        class Living(rq.SimpleWorker):
            def register_death(self) -> None:
                pass

            def register_birth(self) -> None:
                if not self.connection.exists(self.key):
                    super().register_birth()  # type: ignore[no-untyped-call]

        self.rq = Living(
            [self.queue], connection=self.queue.connection, serializer="json"
        )

    def troubles(self) -> dict[str, doctor.Finding]:
        self.host.db.session.remove()
        return {
            name: found
            for name, found in doctor.examine(self.host.state).items()
            if found.status in ("warning", "error")
        }

    def page(self) -> str:
        self.host.db.session.remove()
        text = self.app.test_client().get(WINDOW).text
        return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", text))

    def work(self) -> None:
        """Run a drain, as a worker that lives on."""
        notifier.enqueue(self.queue, periodic.DRAIN, insist=True)
        self.rq.work(burst=True, logging_level="CRITICAL")

    def change(self, statement: t.Any) -> None:
        """Change the database behind the application's back."""
        self.host.db.session.remove()

        with self.host.state.engine.begin() as connected:
            connected.execute(statement)

    def connect(self) -> None:
        accounts.connect(
            self.host.state,
            organization_id=self.credly.organization_id,
            client_id=self.credly.client_id,
            client_secret=self.credly.client_secret,
        )


@pytest.fixture
def make_site(
    make_host: MakeHost,
    credly: CredlySimulator,
    redis_url: str,
) -> cabc.Iterator[cabc.Callable[..., Site]]:
    with contextlib.ExitStack() as stack:

        def make(**given: t.Any) -> Site:
            host = make_host(
                **{
                    "CREDLY_REDIS_URL": redis_url,
                    "CREDLY_QUEUE": f"credly-{uuid.uuid4().hex}",
                    "CREDLY_ENCRYPTION_KEYS": [Fernet.generate_key().decode()],
                    "SECRET_KEY": uuid.uuid4().hex,
                    **given,
                }
            )
            stack.enter_context(host.app.app_context())
            return Site(connect(host, credly), redis_url)

        yield make


@pytest.fixture
def site(make_site: cabc.Callable[..., Site]) -> Site:
    return make_site()


Mend = cabc.Callable[[], object]


def read_only_database(site: Site) -> Mend:
    # Root may write to any file, so the connection is made so.
    statements = {
        "sqlite": "PRAGMA query_only = ON",
        "postgresql": "SET default_transaction_read_only = on",
        "mysql": "SET SESSION TRANSACTION READ ONLY",
        "mariadb": "SET SESSION TRANSACTION READ ONLY",
    }
    engine = site.host.state.engine

    def refuse(raw: t.Any, *_: object) -> None:
        raw.cursor().execute(statements[engine.dialect.name])

        if engine.dialect.name == "postgresql":
            raw.commit()

    return every_connection(site, refuse)


def full_database(site: Site) -> Mend:
    def limit(raw: t.Any, *_: object) -> None:
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        raw.execute(f"PRAGMA max_page_count = {pages}")

    return every_connection(site, limit)


def every_connection(site: Site, change: t.Any) -> Mend:
    """Change what each connection may do, while a badge waits."""
    engine = site.host.state.engine
    site.host.complete()
    site.host.db.session.remove()
    sa.event.listen(engine, "connect", change)
    engine.dispose()

    with contextlib.suppress(sa.exc.DBAPIError):
        site.host.drain()

    def mend() -> None:
        site.host.db.session.remove()
        sa.event.remove(engine, "connect", change)
        engine.dispose()
        site.host.make_due()
        site.host.drain()

    return mend


def changed_secret_key(site: Site) -> Mend:
    before = site.app.config["SECRET_KEY"]
    site.app.config["SECRET_KEY"] = uuid.uuid4().hex

    def mend() -> None:
        site.app.config["SECRET_KEY_FALLBACKS"] = [before]
        rotating.rotate_keys(site.host.state)

    return mend


def lost_key(site: Site) -> Mend:
    before = site.app.config["CREDLY_ENCRYPTION_KEYS"]
    site.app.config["CREDLY_ENCRYPTION_KEYS"] = [Fernet.generate_key().decode()]

    def mend() -> None:
        site.app.config["CREDLY_ENCRYPTION_KEYS"] += before
        rotating.rotate_keys(site.host.state)

    return mend


def worker_with_another_key(site: Site) -> Mend:
    before = site.app.config["CREDLY_ENCRYPTION_KEYS"]
    site.app.config["CREDLY_ENCRYPTION_KEYS"] = [Fernet.generate_key().decode()]
    site.worker._ring(site.host.state)
    site.app.config["CREDLY_ENCRYPTION_KEYS"] = before

    def mend() -> None:
        site.worker._ring(site.host.state)
        # Which it says every five seconds, and is believed for twenty.
        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        site.change(sa.update(Account).values(keyless_until=past))

    return mend


def guessed_secret_key(site: Site) -> Mend:
    good = site.app.config["CREDLY_ENCRYPTION_KEYS"]
    site.app.config.update(CREDLY_ENCRYPTION_KEYS=None, SECRET_KEY="dev")
    site.connect()

    def mend() -> None:
        site.app.config["CREDLY_ENCRYPTION_KEYS"] = good
        rotating.rotate_keys(site.host.state)

    return mend


def firewall(site: Site) -> Mend:
    site.credly.revoke_tokens()
    site.credly.fail("*", times=None, status=403, body="<html>Blocked</html>")
    site.host.complete()
    site.host.drain()
    # The first pauses take seconds, and a test may as well.
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    site.change(sa.update(Account).values(paused_until=later))

    def mend() -> None:
        site.credly.clear_faults()
        let_pause_end(site)

    return mend


def let_pause_end(site: Site) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    site.change(sa.update(Account).values(paused_until=past))
    site.host.make_due()
    site.host.drain(times=2)


def revoked_credentials(site: Site) -> Mend:
    credly = site.credly
    credly.revoke_client()
    site.host.complete()
    site.host.drain()

    def mend() -> None:
        credly.restore_client()
        site.connect()
        site.host.drain()

    return mend


def paused_by_an_admin(site: Site) -> Mend:
    gates.switch(site.host.state.engine, "default", on=False)
    return lambda: gates.switch(site.host.state.engine, "default", on=True)


def rate_limit(site: Site) -> Mend:
    site.credly.fail("issue", status=429, headers={"Retry-After": "90"})
    site.host.complete()
    site.host.drain()
    return lambda: let_pause_end(site)


def archived_template(site: Site) -> Mend:
    site.credly.change_template(site.template_id, state="archived")
    accounts.sync_templates(site.host.state)

    def mend() -> None:
        site.credly.change_template(site.template_id, state="active")
        accounts.sync_templates(site.host.state)

    return mend


def each_time_without_duplicates(site: Site) -> Mend:
    def allow(allowed: bool) -> None:
        site.credly.change_template(site.template_id, allow_duplicate_badges=allowed)
        accounts.sync_templates(site.host.state)

    allow(True)
    (mapping,) = accounts.list_mappings(site.host.db.session, "default")
    accounts.change_options(site.host.state, mapping.id, Options(again="each"))
    allow(False)
    return lambda: allow(True)


def list_in_another_order(site: Site) -> Mend:
    site.host.complete()
    site.host.drain()

    # More than a page.
    for each in range(60):
        address = f"other-{each}@example.org"
        id_ = site.credly.award(site.template_id, address)
        site.credly.advance(1)
        site.credly.accept(id_)

    site.credly.ignored_sorts = {"state_updated_at"}
    poll_now(site.host.state)

    def mend() -> None:
        site.credly.ignored_sorts = set()
        poll_now(site.host.state)

    return mend


def badges_not_read(site: Site) -> Mend:
    site.host.complete()
    site.host.drain()
    poll_now(site.host.state)
    now = dt.datetime.now(dt.UTC)
    before = now - dt.timedelta(days=3)
    site.change(sa.update(Account).values(surveyed_at=before, survey_due_at=now))
    return lambda: poll_now(site.host.state)


def list_not_loaded(site: Site) -> Mend:
    site.credly.fail("templates", status=500)

    with pytest.raises(CredlyError):
        accounts.sync_templates(site.host.state)

    return lambda: accounts.sync_templates(site.host.state)


def no_worker(site: Site) -> Mend:
    site.worker.register_death()  # type: ignore[no-untyped-call]

    def mend() -> None:
        site.worker = CredlyWorker(site.app, site.queue)
        site.worker.register_birth()  # type: ignore[no-untyped-call]
        site.worker._ring(site.host.state)

    return mend


def failed_badge(site: Site) -> Mend:
    site.credly.posts_allowed = 3  # one by hand
    site.credly.fail("issue", times=2, status=422)
    site.host.complete()
    site.host.drain(times=3)

    def mend() -> None:
        done = site.app.test_cli_runner().invoke(args=["credly", "retry", "--all"])
        assert done.exit_code == 0, done.output
        site.host.drain()

    return mend


def missing_table(site: Site) -> Mend:
    site.change(sa.text("DROP TABLE credly_attempt"))
    return site.host.db.create_all


def variable_not_taken_up(site: Site) -> Mend:
    os.environ["CREDLY_SANDBOX"] = "true"
    return lambda: os.environ.pop("CREDLY_SANDBOX")


FAULTS: dict[str, cabc.Callable[[Site], Mend]] = {
    "the database is read-only": read_only_database,
    "the disk of the database is full": full_database,
    "`SECRET_KEY` changed, and encrypts": changed_secret_key,
    "a key was taken out of `CREDLY_ENCRYPTION_KEYS`": lost_key,
    "one worker has other keys": worker_with_another_key,
    "`SECRET_KEY` can be guessed, and encrypts": guessed_secret_key,
    "a variable that no setting took up": variable_not_taken_up,
    "a firewall answers in Credly's place": firewall,
    "the credentials were revoked": revoked_credentials,
    "an admin has paused issuing": paused_by_an_admin,
    "Credly asks for a pause": rate_limit,
    "a badge template was archived": archived_template,
    "a template does not allow the duplicates that a mapping needs": (
        each_time_without_duplicates
    ),
    "the list of templates cannot be loaded": list_not_loaded,
    "the badges were not read for two days": badges_not_read,
    "Credly's list of changes is in another order": list_in_another_order,
    "no worker runs": no_worker,
    "a badge failed": failed_badge,
    "a table of ours is missing": missing_table,
}
TABLE = rows()


def test_each_row_has_its_fault() -> None:
    assert list(TABLE) == list(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAULTS))
def test_it_is_said_as_the_table_says_and_gone_after_the_mend(
    make_site: cabc.Callable[..., Site], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDLY_SANDBOX", "false")
    monkeypatch.delenv("CREDLY_SANDBOX")
    # A drain would wait for the end of the first pauses.
    monkeypatch.setattr("flask_credly.issuing.dispatcher.SHORT_PAUSE", 1.0)
    site = make_site(**({"CREDLY_ENCRYPTION_KEYS": None} if "encrypts" in name else {}))
    usual = site.troubles()
    said, shown, remedy = TABLE[name]
    check, _, words = said.partition(": ")

    mend = FAULTS[name](site)
    found = site.troubles()[check]

    assert words in found.detail
    assert remedy.lower() in str(found.hint).lower()

    if shown != "–":
        assert shown in site.page()

    mend()
    after = site.troubles()

    # What is derived from SECRET_KEY is warned of in any case.
    assert {*after} - {"key"} == set(), after
    assert {*after} <= {*usual}

    if shown != "–":
        page = site.page()
        solved = page.count("Resolved")
        assert shown not in page.partition("Error Log")[0]
        assert solved == min(1, len(site.host.log()))


def test_a_right_that_is_lacking_on_one_table_is_named(
    make_site: cabc.Callable[..., Site],
) -> None:
    site = make_site()

    def refuse(raw: t.Any, *_: object) -> None:
        raw.set_authorizer(
            lambda action, table, *_: (
                sqlite3.SQLITE_DENY
                if (action, table) == (sqlite3.SQLITE_UPDATE, "credly_attempt")
                else sqlite3.SQLITE_OK
            )
        )

    mend = every_connection(site, refuse)
    found = site.troubles()["database"]

    assert "lacks a privilege on credly_attempt" in found.detail
    assert "Grant SELECT, INSERT, UPDATE and DELETE" in str(found.hint)

    mend()
    assert site.troubles() == {}


@every_database
def test_the_doctor_leaves_no_row_where_each_statement_is_committed(
    make_site: cabc.Callable[..., Site],
) -> None:
    options = {"isolation_level": "AUTOCOMMIT"}
    site = make_site(SQLALCHEMY_ENGINE_OPTIONS=options)

    assert site.troubles() == {}
    assert site.host.rows() == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit")
def test_the_doctor_leaves_no_row_where_the_driver_of_sqlite_commits_each_statement(
    make_site: cabc.Callable[..., Site],
) -> None:
    options = {"connect_args": {"autocommit": True}}
    site = make_site(SQLALCHEMY_ENGINE_OPTIONS=options)

    assert site.troubles() == {}
    assert site.host.rows() == []


@every_database
def test_a_database_that_takes_nothing_is_named_without_a_password(
    make_site: cabc.Callable[..., Site],
) -> None:
    site = make_site()
    said = doctor.examine(site.host.state)["database"].detail
    url = site.host.state.engine.url

    assert said == f"Reachable and writable at {url.set(query={})}."

    mend = read_only_database(site)
    found = site.troubles()["database"]

    assert "rejects writes" in found.detail
    assert re.search("read.?only", found.detail, re.I)
    assert "\n" not in found.detail
    assert "Background on this error" not in found.detail

    mend()
    assert site.troubles() == {}
    assert [row.state for row in site.host.rows()] == ["issued"]


def test_what_the_doctor_tries_is_taken_back(site: Site) -> None:
    waiting = site.queue.count
    site.troubles()

    assert site.host.rows() == []
    assert site.queue.count == waiting


def test_no_password_of_a_database_is_printed() -> None:
    url = sa.make_url("postgresql://ada:pass-word@db/school?password=pass-word")

    assert place(url) == "postgresql://ada:***@db/school"


@every_database
def test_a_job_that_failed_is_named_and_forgotten_once_it_goes_well(
    make_site: cabc.Callable[..., Site],
) -> None:
    site = make_site()
    mend = read_only_database(site)
    site.work()
    found = site.troubles()

    assert {*found} == {"database", "jobs"}
    assert re.fullmatch(
        r"Jobs failed \((OperationalError|InternalError|NotSupportedError)\)\.",
        found["jobs"].detail,
    )

    mend()
    site.work()
    assert site.troubles() == {}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pass-word@cache:6379/1", "redis://cache:6379/1"),
        ("rediss://ada:pass@word@cache/1", "rediss://ada@cache/1"),
        ("unix://ada:word@/run/redis.sock?db=2", "unix://ada@/run/redis.sock?db=2"),
        ("redis://cache/0?password=word&db=3", "redis://cache/0?db=3"),
    ],
)
def test_the_redis_in_use_is_named_without_a_password(
    make_host: MakeHost, url: str, shown: str
) -> None:
    host = make_host(CREDLY_REDIS_URL=url, CREDLY_QUEUE="badges")

    with host.app.app_context():
        found = doctor.examine(host.state)["settings"]

    assert f"Queue: 'badges' at {shown}." in found.detail
    assert "word" not in found.detail
