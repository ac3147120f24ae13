"""The trail of who did what, its page, and the limit that is counted in it."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import datetime as dt
import logging
import threading
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from cryptography.fernet import Fernet
from flask import redirect
from test_pages import rules

from flask_credly import accounts
from flask_credly.ledger import audit
from flask_credly.ledger import retrying
from flask_credly.ledger import unrecorded
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import DifferenceRow
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import fail_one
from tests.support.pages import HOSTILE
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import mapped as mapped
from tests.support.pages import read_csv
from tests.support.pages import text_of
from tests.support.pages import WINDOW

ACTIVITY = f"{WINDOW}/activity"
NOW = dt.datetime.now(dt.UTC)
ADMIN = "Grace Example"
ORGANIZATION = "11111111-1111-4111-8111-111111111111"

Entry = tuple[str, str, str, str]


def entries(host: Host) -> list[Entry]:
    """Read the trail anew, oldest first."""
    host.db.session.rollback()
    found = host.db.session.scalars(sa.select(AuditEntry).order_by(AuditEntry.id))
    return [(each.actor, each.action, each.target, each.outcome) for each in found]


def records(caplog: pytest.LogCaptureFixture) -> list[Entry]:
    """Get what was told of entries."""
    named = [vars(each) for each in caplog.records if each.name == "flask_credly.audit"]
    return [
        (
            each["credly_actor"],
            each["credly_action"],
            each["credly_target"],
            each["credly_outcome"],
        )
        for each in named
        if "credly_action" in each
    ]


def pass_time(host: Host, **time: int) -> None:
    """Let a time pass."""
    session = host.db.session
    session.rollback()

    for entry in session.scalars(sa.select(AuditEntry)):
        entry.at -= dt.timedelta(**time)

    session.commit()


@pytest.fixture
def actor() -> t.Any:
    return lambda: ADMIN


@pytest.fixture
def host(make_host: MakeHost, actor: t.Any) -> Host:
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    past = [(a_member("77"), at)]
    return make_host(actor=actor, past_completions=lambda course, since: past)


WHY = ("--reason", "By mistake.", "--silent")


class Walk:
    """Does, as an admin, everything that there is to do."""

    def __init__(self, host: Host, browser: Browser, credly: CredlySimulator) -> None:
        self.host = host
        self.browser = browser
        self.credly = credly
        self.template_id = credly.add_template("Python Badge")
        self.done: set[str] = set()

    def post(self, path: str, *expected: str, **fields: str) -> None:
        page = f"{WINDOW}/connection"
        self._check(
            "POST",
            path,
            expected,
            lambda: self.browser.post(path, page=page, **fields),
        )

    def get(self, path: str, *expected: str) -> None:
        self._check("GET", path, expected, lambda: self.browser.get(path))

    def _check(
        self,
        method: str,
        path: str,
        expected: tuple[str, ...],
        act: cabc.Callable[[], t.Any],
    ) -> None:
        before = entries(self.host)
        self.host.db.session.remove()
        answer = act()
        assert answer.status_code in (200, 303), (path, answer.text)
        assert entries(self.host) == [*before, (ADMIN, *expected)]
        adapter = self.host.app.url_map.bind("localhost")
        self.done.add(adapter.match(path.partition("?")[0], method)[0])

    def do_everything(self) -> None:
        credly, python = self.credly, "Python 101 → Python Badge"
        sql = "SQL basics → Python Badge"
        organization = credly.organization_id
        account = {
            "organization_id": organization,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
        }
        template = {"template": self.template_id}
        self.post(WINDOW, "connect", organization, "ok", **account)
        self.post(WINDOW, "reconnect", organization, "ok", **account)
        self.post(f"{WINDOW}/test", "test", "", "ok")
        self.post(f"{WINDOW}/templates", "sync", "", "ok")
        mappings = f"{WINDOW}/mappings"
        course = {"course": "course:py-101", **template}
        self.post(mappings, "map", python, "ok", **course)
        course["course"] = "course:sql"
        this = f"{mappings}/{self.mapping_id()}"
        self.post(this, "change mapping", sql, "ok", **course)
        self.post(f"{this}/remove", "remove mapping", sql, "ok")
        undo = this.rpartition("/")[2]
        self.post(mappings, "undo", sql, "ok", undo=undo)
        this = f"{mappings}/{self.mapping_id()}"
        course = {"course": "course:py-101", **template}
        self.post(this, "change mapping", python, "ok", **course)
        self.post(f"{this}/options", "change options", python, "ok", group="2026")
        self.post(f"{WINDOW}/pause", "pause", "", "ok")
        self.post(f"{WINDOW}/resume", "resume", "", "ok")
        connected = Connected(self.host, credly, self.template_id)
        first, second = (fail_one(connected, member).id for member in ("42", "43"))
        badges = f"{WINDOW}/badges"
        self.post(f"{badges}/{first}/retry", "retry", str(first), "ok")
        self.post(f"{badges}/retry", "retry all", "1", "ok")
        connected.host.db.session.execute(sa.update(Issuance).values(state="failed"))
        connected.host.db.session.execute(sa.update(Issuance).values(action=None))
        connected.host.db.session.commit()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrying, "PORTION", 1)
            self.post(f"{badges}/retry", "retry all", "2", "ok", number="2")

        self.post(f"{badges}/retry/1/stop", "stop retry", "", "ok")
        self.have_badge(second)
        self.post(f"{badges}/{second}/check", "check", str(second), "ok")
        who = {"email": "admin@example.org", "first_name": "Ada", "last_name": "Admin"}
        tested = str(second + 1)
        self.post(f"{this}/test", "send test badge", tested, "ok", **who)
        self.post(f"{this}/backfill", "start backfill", "Python 101", "ok")
        self.post(f"{WINDOW}/backfills/2/stop", "stop backfill", "Python 101", "ok")
        undo = {"reason": "By mistake", "tell_pending": "no", "tell_accepted": "no"}
        number = {"number": "3", "shown": "3"}
        path = f"{WINDOW}/undo?status=waiting"
        self.post(path, "take back", "3", "ok", **undo, **number)
        self.post(f"{WINDOW}/undo/3/stop", "stop taking back", "3", "ok")
        unrecorded.add(self.host.state.engine, "default", unrecorded.Count(1, NOW))
        self.post(f"{WINDOW}/unrecorded/1/dismiss", "dismiss", "1", "ok")
        self.put_right(badges)
        self.withdraw()
        self.compare(f"{WINDOW}/compare")
        self.get(f"{badges}.csv", "export badges", "", "ok")
        self.get(f"{WINDOW}/undo/3.csv", "export badges", "", "ok")
        self.get(f"{WINDOW}/errors.csv", "export errors", "", "ok")
        self.get(f"{ACTIVITY}.csv", "export activity", "", "ok")
        self.post(f"{WINDOW}/remove", "remove", organization, "ok")

    def put_right(self, badges: str) -> None:
        """Have one revoked, one corrected and one issued again."""
        ids = [self.have_issued(member) for member in ("81", "82", "83")]
        revoked, corrected, again = (f"{badges}/{row_id}" for row_id in ids)
        who = {"first_name": "Ada", "last_name": "Lovelace"}
        right = {**who, "completed": "2026-01-31", "template": self.template_id}
        why = {"reason": "By mistake.", "tell": "no"}
        new = ids[-1] + 1
        to = f"{ids[1]} → {new}"
        self.post(f"{revoked}/revoke", "revoke", str(ids[0]), "ok", **why)
        self.post(f"{corrected}/correct", "correct", to, "ok", step="confirm", **right)
        to, who["email"] = f"{ids[2]} → {new + 1}", "ada@example.org"
        self.post(f"{again}/again", "issue again", to, "ok", **who, **why)

    def withdraw(self) -> None:
        """Decide about many whose completions were withdrawn."""
        for decision in ("revoke", "keep"):
            row_id = self.have_issued(decision)
            self.host.db.session.execute(
                sa.update(Issuance)
                .where(Issuance.id == row_id)
                .values(action="revoke", reason="awaits approval")
            )
            self.host.db.session.commit()
            sent = {"decision": decision, "shown": "1", "number": "1"}
            self.post(f"{WINDOW}/withdrawn", f"{decision} withdrawn", "1", "ok", **sent)

    def compare(self, path: str) -> None:
        """Compare, stop it, and repair what was found."""
        self.post(path, "compare", "", "ok")
        run_id = self.run_id()
        self.post(f"{path}/{run_id}/stop", "stop comparing", "", "ok")
        self.post(path, "compare", "", "ok")
        run_id = self.run_id()
        difference = {"bucket": "failed_here", "tenant": "default", "found_at": NOW}
        run = sa.update(Batch).where(Batch.id == run_id)
        found = {"counts": {"failed_here": 1}, "moving": 0, "host": True}
        self.host.db.session.execute(
            run.values(state="compared", due_at=None, found=found)
        )
        self.host.db.session.add(DifferenceRow(batch_id=run_id, **difference))
        self.host.db.session.commit()
        self.get(f"{path}.csv", "export differences", "", "ok")
        sent = {"run": str(run_id), "shown": "1", "number": "1"}
        path = f"{path}/repair?bucket=failed_here"
        self.post(path, "repair", "failed here: 1", "ok", **sent)

    def run_id(self) -> int:
        self.host.db.session.rollback()
        return self.host.db.session.scalars(sa.select(sa.func.max(Batch.id))).one()

    def have_issued(self, member_id: str) -> int:
        self.host.complete(member_id)
        row_id = self.host.rows()[-1].id
        this = sa.update(Issuance).where(Issuance.id == row_id)
        self.host.db.session.execute(
            this.values(state="issued", action=None, due_at=None)
        )
        self.have_badge(row_id)
        return row_id

    def have_badge(self, row_id: int) -> None:
        this = sa.update(Issuance).where(Issuance.id == row_id)
        self.host.db.session.execute(this.values(badge_id=str(uuid.uuid4())))
        self.host.db.session.commit()

    def mapping_id(self) -> int:
        self.host.db.session.rollback()
        return self.host.db.session.scalars(sa.select(Mapping.id)).one()


@pytest.fixture
def walk(
    host: Host, browser: Browser, credly: CredlySimulator, in_context: None
) -> Walk:
    return Walk(host, browser, credly)


@pytest.mark.slow
@every_database
def test_each_action_is_one_entry_that_survives_remove(
    walk: Walk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    walk.do_everything()
    acting = {
        walk.host.app.url_map.bind("localhost").match(path, method)[0]
        for method, path in rules(walk.host.app)
        if method == "POST" or path.endswith(".csv")
    }

    assert walk.done == acting
    assert accounts.get(walk.host.db.session, "default") is None
    assert records(caplog) == entries(walk.host)


def test_the_trail_has_no_secret_and_no_member(walk: Walk) -> None:
    credly = walk.credly
    walk.browser.connect(credly, client_secret="typed-secret")
    walk.do_everything()
    noted = repr(entries(walk.host))
    session = walk.host.db.session
    found = session.execute(sa.text("SELECT * FROM credly_audit")).all()

    assert "typed-secret" not in noted
    assert len(found) == len(entries(walk.host))

    for secret in (
        credly.client_secret,
        "typed-secret",
        credly.client_id,
        "example.org",
        "Ada",
        "Admin",
    ):
        assert secret not in repr(found)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("secret", "refused"),
        ("away", "failed"),
        ("no key", "refused"),
        ("other", "refused"),
    ],
)
def test_a_connect_that_failed_is_noted_with_its_outcome(
    host: Host, credly: CredlySimulator, in_context: None, fault: str, outcome: str
) -> None:
    account = {
        "organization_id": credly.organization_id,
        "client_id": credly.client_id,
        "client_secret": credly.client_secret,
    }

    if fault == "secret":
        account["client_secret"] = "typed-secret"
    elif fault == "away":
        credly.fail("token", status=503)
    elif fault == "no key":
        host.app.config["SECRET_KEY"] = None
    else:
        connect(host, credly)
        account["organization_id"] = ORGANIZATION

    with pytest.raises(Exception) as raised:
        accounts.connect(host.state, **account, by=ADMIN)

    assert type(raised.value).__module__.startswith("flask_credly.")
    target = account["organization_id"]
    assert entries(host) == [(ADMIN, "connect", target, outcome)]


def test_other_refusals_are_noted(
    mapped: tuple[Browser, Connected, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    browser, (host, credly, _), _ = mapped
    credly.fail("templates", status=503, times=2)
    browser.post(f"{WINDOW}/test")
    browser.post(f"{WINDOW}/templates")
    credly.revoke_client()
    browser.post(f"{WINDOW}/test")
    found = [(ADMIN, "test", "", "failed"), (ADMIN, "sync", "", "failed")]
    found += [(ADMIN, "test", "", "refused")]

    assert entries(host) == found
    assert records(caplog) == found


def test_what_changed_nothing_is_not_noted(
    mapped: tuple[Browser, Connected, int], caplog: pytest.LogCaptureFixture
) -> None:
    """What a form refuses, or what has gone already: it is taken back with its
    transaction, and not told either.
    """
    caplog.set_level(logging.INFO)
    browser, (host, _, template_id), mapping_id = mapped
    course = {"course": "course:py-101", "template": template_id}

    assert browser.post(f"{WINDOW}/mappings", **course).status_code == 422
    browser.post(f"{WINDOW}/mappings/999", **course)
    browser.post(f"{WINDOW}/mappings/999/remove")
    browser.post(f"{WINDOW}/mappings/999/backfill")
    browser.post(f"{WINDOW}/mappings/{mapping_id}/test", email="nobody")
    browser.post(f"{WINDOW}/backfills/999/stop")
    browser.post(f"{WINDOW}/badges/999/retry")
    browser.post(f"{WINDOW}/badges/retry")
    accounts.remove(host.state)
    browser.post(f"{WINDOW}/remove")
    browser.post(f"{WINDOW}/pause")
    browser.post(f"{WINDOW}/test")
    browser.post(f"{WINDOW}/templates")
    assert entries(host) == []
    assert records(caplog) == []


def test_a_process_that_died_leaves_the_beginning(
    host: Host, browser: Browser, in_context: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        with audit.asking(host.state.engine, "default", ADMIN, "connect", ORGANIZATION):
            raise KeyboardInterrupt

    assert entries(host) == [(ADMIN, "connect", ORGANIZATION, "begun")]
    assert "Not finished" in browser.get(ACTIVITY).text


def test_an_entry_is_kept_with_its_transaction_only(
    host: Host, in_context: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    with host.state.engine.connect() as connected:
        audit.note(connected, "default", ADMIN, "pause")
        connected.rollback()
        audit.note(connected, "default", ADMIN, "resume")
        assert records(caplog) == []
        connected.commit()

    assert entries(host) == [(ADMIN, "resume", "", "ok")]
    assert records(caplog) == entries(host)


def test_only_known_words_are_noted(host: Host, in_context: None) -> None:
    engine = host.state.engine

    for action, outcome in (("dance", "ok"), ("pause", "perhaps")):
        with pytest.raises(ValueError, match="Not a known action"):
            audit.note_alone(engine, "default", ADMIN, action, outcome=outcome)


def award_what_no_row_has(connected: Connected) -> None:
    """Let a member of the ledger have a badge at Credly that it does not know."""
    credly = connected.credly
    earner = credly.badges[0]["issuer_earner_id"]
    other = credly.add_template("Another")
    credly.award(other, "member-43@example.org", issuer_earner_id=earner)


class TestCommands:
    READING = {"worker", "status", "sweep", "doctor", "poll"}
    """They change nothing, or what they do is no admin's action."""

    def run(self, host: Host, *words: str) -> None:
        answer = host.app.test_cli_runner().invoke(args=["credly", *words])
        assert answer.exit_code == 0, answer.output

    def test_each_command_that_changes_something_is_noted(
        self, connected: Connected
    ) -> None:
        host = connected.host
        row_id = fail_one(connected).id
        host.complete("43")
        host.drain()
        issued = row_id + 1
        old = AuditEntry(
            tenant="default", actor="", action="test", target="", outcome="ok"
        )
        old.at = dt.datetime.now(dt.UTC) - dt.timedelta(days=366)
        host.db.session.add(old)
        host.db.session.commit()
        host.app.config["CREDLY_ENCRYPTION_KEYS"] = [Fernet.generate_key().decode()]
        done = {
            "prune": ["prune"],
            "sync": ["sync"],
            "retry": ["retry", str(row_id)],
            "revoke": ["revoke", str(issued), *WHY],
            "reissue": ["reissue", str(issued)],
            "backfill": ["backfill"],
            "restored": ["restored"],
            "reconcile": ["reconcile", "--repair", "unknown_here", "--confirm", "1"],
            "dismiss": ["dismiss"],
            "rotate-keys": ["rotate-keys"],
            "export-member": ["export-member", "42"],
            "erase-member": ["erase-member", "42"],
            "revoke-many": [
                *("revoke-many", "--course", "py-101", "--confirm", "2"),
                *("--reason", "Issued by mistake.", "--tell", "nobody"),
            ],
        }

        for words in done.values():
            if words[0] == "reconcile":
                award_what_no_row_has(connected)

            if words == ["dismiss"]:
                unrecorded.add(host.state.engine, "default", unrecorded.Count(2, NOW))

            self.run(host, *words)

            if words[0] == "revoke":
                host.drain()

        commands = t.cast(t.Any, host.app.cli.commands["credly"]).commands

        assert entries(host) == [
            ("command line", "prune", "1", "ok"),
            ("command line", "sync", "", "ok"),
            ("command line", "retry", str(row_id), "ok"),
            ("command line", "revoke", str(issued), "ok"),
            ("command line", "issue again", f"{issued} → {issued + 1}", "ok"),
            ("command line", "start backfill", "Python 101", "ok"),
            ("command line", "restored", "", "ok"),
            ("command line", "repair", "unknown here: 1", "ok"),
            ("command line", "dismiss", "2", "ok"),
            ("command line", "rotate keys", "", "ok"),
            ("command line", "export member", "", "ok"),
            ("command line", "erase member", "", "ok"),
            ("command line", "take back", "Python 101: 2", "ok"),
        ]
        assert set(commands) == set(done) | self.READING

    def test_a_timer_may_sync_as_often_as_it_likes(self, connected: Connected) -> None:
        for _ in range(7):
            self.run(connected.host, "sync")

        assert len(entries(connected.host)) == 7


class TestActor:
    @pytest.fixture
    def actor(self, answer: t.Any) -> t.Any:
        def actor() -> t.Any:
            if isinstance(answer, Exception):
                raise answer

            return answer

        return actor

    @pytest.mark.parametrize(
        ("answer", "noted"),
        [
            ("  Grace\r\nExample\x1b[2J\u2028\u202e ", "Grace Example[2J"),
            ("x" * 300, "x" * 255),
            (None, ""),
            (42, ""),
            (b"Grace", ""),
            (RuntimeError("no session"), ""),
            ("command line", ""),
        ],
        ids=repr,
    )
    def test_any_answer_leaves_the_action_alone(
        self,
        mapped: tuple[Browser, Connected, int],
        caplog: pytest.LogCaptureFixture,
        answer: t.Any,
        noted: str,
    ) -> None:
        caplog.set_level(logging.INFO)
        browser, (host, _, _), mapping_id = mapped
        browser.post(f"{WINDOW}/pause")
        browser.post(f"{WINDOW}/mappings/{mapping_id}/remove")
        target = "Python 101 → Python Badge"
        wrong = isinstance(answer, (Exception, int, bytes))

        assert entries(host) == [
            (noted, "pause", "", "ok"),
            (noted, "remove mapping", target, "ok"),
        ]
        assert accounts.list_mappings(host.db.session, "default") == []
        assert ("@credly.actor" in caplog.text) == wrong
        failed = [getattr(each, "credly_hook", None) for each in caplog.records]
        assert ("actor" in failed) == wrong
        assert all(
            each.getMessage().isprintable()
            for each in caplog.records
            if each.name == "flask_credly.audit"
        )

    @every_database
    def test_a_failed_statement_of_the_hook_spoils_nothing(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        host: Host

        def actor() -> str:
            host.db.session.execute(sa.text("SELECT name FROM nowhere"))
            return "never"

        host = make_host(actor=actor)

        with host.app.app_context():
            template_id = connect(host, credly).template_id
            host.db.session.remove()
            course = {"course": "course:sql", "template": template_id}
            answer = Browser(host.app).post(f"{WINDOW}/mappings", **course)

            assert answer.status_code == 303
            assert [each[:2] for each in entries(host)] == [("", "map")]

    def test_without_the_hook_nobody_is_named(self, make_host: MakeHost) -> None:
        host = make_host()
        browser = Browser(host.app)
        browser.get(f"{ACTIVITY}.csv")

        with host.app.app_context():
            assert entries(host) == [("", "export activity", "", "ok")]

        assert "Unknown" in text_of(browser.get(ACTIVITY))


@pytest.mark.parametrize("answer", [False, redirect("/login")], ids=["page", "login"])
def test_a_denied_visitor_is_logged_and_fills_no_table(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture, answer: t.Any
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[str] = []
    host = make_host(is_admin=lambda: answer, actor=lambda: asked.append("x"))
    client = host.app.test_client()

    for _ in range(3):
        assert client.post(f"{WINDOW}/pause").status_code in (302, 403)
        assert client.get(f"{ACTIVITY}.csv").status_code in (302, 403)

    with host.app.app_context():
        assert entries(host) == []

    said = [each for each in caplog.records if each.name == "flask_credly.audit"]
    assert len(said) == 6
    assert said[0].getMessage() == "Access to credly.pause was denied."
    assert records(caplog)[0] == ("", "access", "credly.pause", "refused")
    assert asked == []


def test_a_form_that_is_refused_is_logged_with_the_reason(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = make_host()
    host.app.test_client().post(f"{WINDOW}/pause")
    (record,) = [each for each in caplog.records if each.name == "flask_credly.audit"]

    assert record.getMessage() == (
        "The form for credly.pause was refused: The CSRF token is missing."
    )
    assert records(caplog) == [("", "form", "credly.pause", "refused")]

    with host.app.app_context():
        assert entries(host) == []


class TestTooOften:
    name = ADMIN

    @pytest.fixture
    def actor(self) -> t.Any:
        return lambda: self.name

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_the_sixth_try_in_a_minute_asks_nothing(
        self,
        host: Host,
        browser: Browser,
        credly: CredlySimulator,
        in_context: None,
        headers: t.Any,
    ) -> None:
        wrong = {"client_id": "typed-id", "client_secret": "typed-secret"}

        for _ in range(5):
            answer = browser.connect(credly, **wrong, headers=headers)
            assert answer.status_code == 422

        asked = len(credly.received)
        answer = browser.connect(credly, **wrong, headers=headers)

        assert answer.status_code == 429
        assert len(credly.received) == asked
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert "Too many attempts. Try again in" in answer.text
        assert 'value="typed-id"' in answer.text
        assert "typed-secret" not in answer.text
        assert ("<html" in answer.text) == (headers is None)
        # A flood adds nothing, and does not put off the next try.
        assert len(entries(host)) == 5

        pass_time(host, seconds=61)
        assert browser.connect(credly).status_code == 303
        assert entries(host)[-1][1:] == ("connect", credly.organization_id, "ok")

    def test_the_twenty_first_in_an_hour_says_when(
        self, host: Host, browser: Browser, credly: CredlySimulator, in_context: None
    ) -> None:
        engine = host.state.engine

        for _ in range(20):
            audit.note_alone(engine, "default", "", "connect", ORGANIZATION, "refused")

        pass_time(host, minutes=30)
        answer = browser.connect(credly)

        assert answer.status_code == 429
        assert "Try again in 30 minutes." in answer.text
        assert 1700 < int(answer.headers["Retry-After"]) <= 1800
        assert credly.received == []

        pass_time(host, minutes=31)
        assert browser.connect(credly).status_code == 303

    def test_connecting_again_counts_with_it_for_all_admins(
        self, host: Host, browser: Browser, credly: CredlySimulator, in_context: None
    ) -> None:
        for _ in range(5):
            assert browser.connect(credly).status_code == 303

        self.name = "Another admin"
        answer = browser.connect(credly)
        assert answer.status_code == 429
        assert "Your previous connection is still in use." in answer.text
        # Nothing else is held up by it.
        assert browser.post(f"{WINDOW}/test").status_code == 303
        assert entries(host)[-1] == ("Another admin", "test", "", "ok")

    @pytest.mark.parametrize("path", ["test", "templates"])
    def test_other_buttons_that_ask_credly_say_so_too(
        self, mapped: tuple[Browser, Connected, int], path: str
    ) -> None:
        browser, (host, credly, _), _ = mapped

        for _ in range(5):
            browser.post(f"{WINDOW}/{path}")

        asked = len(credly.received)
        answer = browser.post(f"{WINDOW}/{path}")

        assert len(credly.received) == asked
        assert "Too many attempts." in browser.get(answer.location).text
        assert len(entries(host)) == 5

    def test_the_command_line_takes_no_admins_turn(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, (host, credly, _), _ = mapped

        for _ in range(5):
            accounts.sync_templates(host.state, by=audit.COMMAND_LINE)

        browser.post(f"{WINDOW}/templates")
        assert entries(host)[-1] == (ADMIN, "sync", "", "ok")

    @every_database
    def test_a_clock_that_was_fast_locks_nobody_out(
        self, host: Host, in_context: None
    ) -> None:
        for _ in range(5):
            audit.note_alone(host.state.engine, "default", ADMIN, "test")

        pass_time(host, days=-3)

        with audit.asking(host.state.engine, "default", ADMIN, "test"):
            pass

        assert len(entries(host)) == 6

    @every_database
    def test_those_who_try_at_once_do_not_pass_together(
        self, host: Host, in_context: None
    ) -> None:
        engine = host.state.engine
        together = threading.Barrier(8)

        def attempt(number: int) -> bool:
            together.wait()

            try:
                with audit.asking(engine, "default", ADMIN, "connect", ORGANIZATION):
                    return True
            except audit.TooOften:
                return False

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            passed = sum(pool.map(attempt, range(8)))

        assert passed <= 5
        assert len(entries(host)) == passed


class TestPage:
    def test_it_is_empty_at_first_and_not_linked(self, browser: Browser) -> None:
        assert "No activity yet." in browser.get(ACTIVITY).text
        assert ACTIVITY not in browser.get(LIST).text

    def test_it_is_reached_from_the_window_and_after_remove_from_the_list(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, (host, credly, _), _ = mapped
        assert f'href="{ACTIVITY}"' in browser.get(WINDOW).text
        assert f'href="{ACTIVITY}"' not in browser.get(LIST).text
        browser.post(f"{WINDOW}/remove")
        page = text_of(browser.get(ACTIVITY))

        assert f'href="{ACTIVITY}"' in browser.get(LIST).text
        assert "Remove organization" in page
        assert credly.organization_id in page
        assert ADMIN in page

    def test_it_is_read_page_by_page(
        self, host: Host, browser: Browser, in_context: None
    ) -> None:
        for number in range(1, 121):
            audit.note_alone(host.state.engine, "default", ADMIN, "retry", str(number))

        first = browser.get(ACTIVITY).text
        second = browser.get(f"{ACTIVITY}?before=71").text
        last = browser.get(f"{ACTIVITY}?before=21").text

        assert (badge(120) in first, badge(70) in first) == (True, False)
        assert f"{ACTIVITY}?before=71" in first
        assert (badge(70) in second, badge(21) in second) == (True, True)
        assert f"{ACTIVITY}?after=70" in second
        assert (badge(1) in last, "Older" in last) == (True, False)
        assert browser.get(f"{ACTIVITY}?before=x&after=").text.count("<tr>") == 51

    def test_names_are_only_text(
        self, host: Host, browser: Browser, in_context: None
    ) -> None:
        audit.note_alone(host.state.engine, "default", HOSTILE, "map", HOSTILE)
        page = browser.get(ACTIVITY).text

        assert "<img" not in page
        assert "hx-get" not in page.replace("hx-get=&#34;", "")
        assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 2

    def test_an_action_of_a_later_version_is_shown_as_it_is(
        self, host: Host, browser: Browser, in_context: None
    ) -> None:
        audit.note_alone(host.state.engine, "default", ADMIN, "pause")
        host.db.session.execute(sa.update(AuditEntry).values(action="later"))
        host.db.session.commit()

        assert "later" in text_of(browser.get(ACTIVITY))

    def test_the_file_has_all_of_it_without_formulas(
        self, host: Host, browser: Browser, in_context: None
    ) -> None:
        engine = host.state.engine
        audit.note_alone(engine, "default", "=cmd()", "map", "=cmd() → Badge")
        audit.note_alone(
            engine, "default", audit.COMMAND_LINE, "sync", outcome="failed"
        )
        answer = browser.get(f"{ACTIVITY}.csv")
        header, *rows = read_csv(answer.text)

        assert 'filename="credly-activity.csv"' in answer.headers["Content-Disposition"]
        assert header == ["Timestamp", "Who", "Action", "Result"]
        assert [row[1:] for row in rows] == [
            [ADMIN, "Export activity", "Done"],
            ["Command line", "Load the badge templates", "Failed"],
            ["'=cmd()", "Map =cmd() → Badge", "Done"],
        ]
        assert all(dt.datetime.strptime(row[0], "%Y-%m-%d %H:%M:%S") for row in rows)

    def test_every_action_has_its_words(
        self, host: Host, browser: Browser, in_context: None
    ) -> None:
        for action in audit.ACTIONS:
            audit.note_alone(host.state.engine, "default", ADMIN, action, "its target")

        page = " ".join(text_of(browser.get(ACTIVITY)).split())

        for words in audit.ACTIONS.values():
            assert words.replace("%(target)s", "its target") in page


def badge(number: int) -> str:
    return f"Retry badge <bdi>{number}</bdi>"


def test_an_index_serves_the_limit_and_a_pruning(host: Host, in_context: None) -> None:
    found = sa.inspect(host.db.engine).get_indexes("credly_audit")

    assert sorted((each["name"], each["column_names"]) for each in found) == [
        ("ix_credly_audit_tenant_at", ["tenant", "at"]),
        ("ix_credly_audit_tenant_id", ["tenant", "id"]),
    ]


def test_the_connection_of_the_session_is_not_told_twice(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit of the host's, later, is none of the trail's."""
    caplog.set_level(logging.INFO)
    host = connected.host
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.remove_mapping(host.state, mapping.id, by=ADMIN)
    host.db.session.execute(sa.update(Account).values(failures=0))
    host.db.session.commit()

    assert len(records(caplog)) == 1
