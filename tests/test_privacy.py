"""What is stored about people: for how long, given out, erased."""

from __future__ import annotations

import collections.abc as cabc
import csv
import datetime as dt
import io
import json
import logging
import pathlib
import re
import threading
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import badge_issued
from flask_credly import badge_replaced
from flask_credly import completion_withdrawn
from flask_credly import jobs
from flask_credly import Member
from flask_credly.credly import Client
from flask_credly.issuing import notifier
from flask_credly.issuing import whose
from flask_credly.ledger import actions
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import privacy
from flask_credly.ledger import retention
from flask_credly.ledger import settle
from flask_credly.ledger.reasons import REASONS
from flask_credly.models import Attempt
from flask_credly.models import AuditEntry
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.databases import open_again
from tests.support.databases import servers
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER

ADA = Member("ada-4711", "ada.canary@example.org", "Adacanary", "Lovecanary")
GRACE = Member("grace-1", "grace@example.org", "Gracious", "Other")

NAMES = (ADA.id, ADA.email, ADA.first_name, ADA.last_name)


def run(host: Host, *command: str) -> str:
    found = host.app.test_cli_runner().invoke(args=["credly", *command])
    assert found.exit_code == 0, found.output
    return found.output


def add(host: Host, credly: CredlySimulator, course_id: str) -> None:
    """Map one more course, to a badge of its own."""
    course = next(each for each in COURSES if each.id == course_id)
    template_id = credly.add_template(f"{course.title} Badge")
    accounts.sync_templates(host.state)
    accounts.add_mapping(host.state, course, template_id)


def everything(host: Host) -> str:
    """Read every column of every table of ours, as text."""
    host.db.session.rollback()
    found = [
        str(row)
        for table in Base.metadata.sorted_tables
        for row in host.db.session.execute(sa.select(table))
    ]
    host.db.session.rollback()
    return "\n".join(found)


def named_in(content: str | bytes, names: cabc.Iterable[str] = NAMES) -> list[str]:
    """Say which names are there, in any case."""
    text = content if isinstance(content, str) else content.decode("latin-1")
    return [name for name in names if name.lower() in text.lower()]


def live_a_life(host: Host, credly: CredlySimulator) -> None:
    """Let Ada have badges in every state, and Grace some too."""
    add(host, credly, "sql")
    add(host, credly, "data")
    echo = {"data": {"message": f"{ADA.email} of {ADA.first_name} is refused"}}
    host.complete(member=ADA)
    host.complete(member=GRACE)
    host.drain()
    credly.fail("issue", status=422, times=2, body=echo)
    host.complete(member=ADA, course_id="sql")
    host.drain(2)
    mapping_id = host.db.session.scalar(sa.select(sa.func.min(Mapping.id)))
    issuances.add_test(
        host.state.engine,
        "default",
        mapping_id or 0,
        email=ADA.email.upper(),
        first_name=ADA.first_name,
        last_name=ADA.last_name,
    )
    host.drain()
    credly.fail("issue", status=422, times=2)
    host.complete(member=GRACE, course_id="sql")
    host.drain(2)
    host.complete(member=ADA, course_id="data", kind="learning_path")
    assert named_in(everything(host)) == list(NAMES)


def cover(host: Host, *, days: int) -> None:
    """Let everything be so many days older."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)

    for column in (Issuance.settled_at, LogEntry.at, Attempt.finished_at):
        host.db.session.execute(
            sa.update(column.class_).where(column.is_not(None)).values({column: past})
        )

    host.db.session.commit()


class TestErase:
    @every_database
    def test_nothing_in_the_database_names_the_member(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)

        erased = host.credly.erase_member(ADA.id)

        assert named_in(everything(host)) == []
        assert list(erased.at_credly) == [
            badge["id"] for badge in credly.badges_for(ADA.email)
        ]
        assert (erased.badges, erased.cancelled) == (4, 1)
        assert (erased.perhaps_issued, erased.log_entries) == (0, 1)
        assert erased.sent_to_credly == 3
        assert named_in(everything(host), erased.at_credly) == []

    @every_database
    def test_others_are_left_alone(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        of_grace = [{**vars(row)} for row in host.rows() if row.member_id == GRACE.id]
        log = [entry for entry in host.log() if GRACE.email in entry[1]]

        host.credly.erase_member(ADA.id)

        after = [{**vars(row)} for row in host.rows() if row.member_id == GRACE.id]

        for row in of_grace + after:
            del row["_sa_instance_state"]

        assert after == of_grace != []
        assert [entry for entry in host.log() if GRACE.email in entry[1]] == log
        assert len(log) == 1

    def test_neither_does_the_file(
        self, connected: Connected, tmp_path: pathlib.Path
    ) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        file = tmp_path / "host.db"
        host.db.session.remove()
        assert named_in(file.read_bytes()) == list(NAMES)

        host.credly.erase_member(ADA.id)
        host.db.session.remove()

        with host.state.engine.connect() as connected_:
            connected_.exec_driver_sql("VACUUM")

        assert named_in(file.read_bytes()) == []
        assert named_in(file.read_bytes(), [GRACE.email]) == [GRACE.email]

    def test_what_was_issued_stays_and_is_counted(self, connected: Connected) -> None:
        host, _, template_id = connected
        host.complete(member=ADA)
        host.drain()
        (before,) = [(row.state, row.completed_at) for row in host.rows()]

        host.credly.erase_member(ADA.id)

        row = host.row()
        assert (row.state, row.completed_at) == before
        assert (row.template_id, row.error, row.email) == (template_id, None, "")
        assert row.erased_at is not None
        assert json.loads(run(host, "status", "--json"))["issued"] == 1

    def test_rows_of_one_member_no_longer_belong_together(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)

        host.credly.erase_member(ADA.id)

        ids = [row.member_id for row in host.rows() if row.erased_at]
        assert len(set(ids)) == len(ids) == 4

    @every_database
    def test_nor_do_they_by_the_moment_of_the_erasure(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        with host.app.app_context():
            connect(host, credly)
            live_a_life(host, credly)
            now = host.rows()[0].recorded_at

            host.credly.erase_member(ADA.id)

            rows = [row for row in host.rows() if row.erased_at]
            days = [row.erased_at for row in rows if row.erased_at]
            assert {(day.time(), now - day < dt.timedelta(1)) for day in days} == {
                (dt.time(), True)
            }
            times = [row.settled_at for row in rows]
            assert len(set(times)) == len(times) == 4
            assert all(row.settled_at >= row.recorded_at for row in rows)

    def test_what_waits_is_not_sent(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete(member=ADA)

        host.credly.erase_member(ADA.id)
        host.make_due()
        host.drain()

        row = host.row()
        assert (row.state, row.reason) == ("cancelled", "erased")
        assert (credly.count("issue"), credly.count("look-up")) == (0, 0)

    def test_what_waits_for_a_look_up_is_not_sent_either(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_RETRY_DELAY=60)
        credly.fail("issue", how="reset", after=True)
        host.complete(member=ADA)
        host.drain()
        assert host.row().outcome_unknown

        said = run(host, "erase-member", ADA.id)
        host.make_due()
        host.drain()

        row = host.row()
        assert (row.state, row.reason) == ("cancelled", "perhaps issued")
        assert "possibly issued by Credly: 1" in said
        assert (credly.count("issue"), credly.count("look-up")) == (1, 0)

    @pytest.mark.parametrize("ids", [["--all"], ["1", "2", "3"]])
    def test_it_is_never_retried(self, connected: Connected, ids: list[str]) -> None:
        host, credly, _ = connected
        credly.posts_allowed = 3  # Grace's is retried
        live_a_life(host, credly)
        host.credly.erase_member(ADA.id)
        before = [row.state for row in host.rows() if row.erased_at]

        run(host, "retry", *ids)
        host.drain()

        assert [row.state for row in host.rows() if row.erased_at] == before
        assert len(credly.badges_for(ADA.email)) == 1
        assert named_in(everything(host)) == []

    def test_a_second_time_finds_nothing(self, connected: Connected) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        host.credly.erase_member(ADA.id)
        before = everything(host)

        assert host.credly.erase_member(ADA.id) == privacy.Erased(0, 0, 0, 0, 0, ())
        assert everything(host) == before

    def test_a_late_signal_makes_no_second_badge(self, connected: Connected) -> None:
        """For us it is a new member; Credly knows the hash, and refuses."""
        host, credly, _ = connected
        host.complete(member=ADA)
        host.drain()
        host.credly.erase_member(ADA.id)

        host.complete(member=ADA)
        host.drain()

        assert len(credly.badges) == 1
        assert [row.state for row in host.rows()] == ["issued", "issued"]

    def test_an_id_that_cannot_be_one_is_refused(self, connected: Connected) -> None:
        with pytest.raises(ValueError, match="member_id must be a string"):
            connected.host.credly.erase_member("")

        with pytest.raises(ValueError, match="member_id must be a string"):
            connected.host.credly.export_member("x" * 192)

    def test_a_number_is_an_id(self, connected: Connected) -> None:
        host, _, _ = connected
        host.complete("42")

        assert host.credly.erase_member(42).badges == 1  # type: ignore[arg-type]

    @every_database
    def test_it_is_a_part_of_the_hosts_transaction(self, connected: Connected) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        session = host.db.session
        write = sa.update(Issuance).values(crashes=Issuance.crashes)

        session.execute(write)
        host.credly.erase_member(ADA.id)
        session.rollback()
        assert named_in(everything(host)) == list(NAMES)

        session.execute(write)
        host.credly.erase_member(ADA.id)
        session.commit()
        assert named_in(everything(host)) == []

    def test_a_read_of_the_hosts_does_not_put_it_off(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        host.rows()

        host.credly.erase_member(ADA.id)
        host.db.session.rollback()

        assert named_in(everything(host)) == []

    def test_after_remove_it_finds_what_was_kept(self, connected: Connected) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        host.drain()
        accounts.remove(host.state)
        assert named_in(everything(host)) == [ADA.id]

        host.credly.erase_member(ADA.id)

        assert named_in(everything(host)) == []

    def test_what_was_erased_survives_a_reconnect(self, connected: Connected) -> None:
        host, credly, template_id = connected
        host.complete(member=ADA)
        host.drain()
        host.credly.erase_member(ADA.id)
        accounts.remove(host.state)
        connect_and_map(host, credly, template_id)
        host.drain()

        assert (host.row().state, len(credly.badges)) == ("issued", 1)

    def test_an_error_of_the_database_names_nobody(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        host.db.session.remove()
        Base.metadata.tables["credly_attempt"].drop(host.state.engine)

        with pytest.raises(sa.exc.OperationalError) as caught:
            host.credly.erase_member(ADA.id)

        assert named_in(str(caught.value)) == []
        assert named_in(everything_but(host, "credly_attempt")) == list(NAMES)
        host.db.create_all()


def everything_but(host: Host, name: str) -> str:
    rows = [
        str(row)
        for table in Base.metadata.sorted_tables
        if table.name != name
        for row in host.db.session.execute(sa.select(table))
    ]
    host.db.session.rollback()
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        ("revoke", "Badge revocation failed", "revoke badge “Python Badge” of"),
        (
            "replace",
            "Badge replacement failed",
            "issue the corrected badge “Python Badge” to",
        ),
    ],
)
def test_the_error_log_still_says_what_failed(
    connected: Connected, act: str, error: str, words: str
) -> None:
    host, credly, _ = connected
    host.complete(member=ADA)
    host.drain()
    ask_for(act, host.state.engine, host.row())
    credly.fail("revoke" if act == "revoke" else "replace", status=422, times=2)
    host.drain(3)
    ((_, details),) = host.log()
    assert ADA.email in details

    assert host.credly.erase_member(ADA.id).log_entries == 1

    assert host.log() == [(error, f"Failed to {words} a member who was erased.")]


def ask_for(act: str, bind: t.Any, row: Issuance) -> object:
    """Have something done about a badge, as an admin does.

    :param bind: The engine, or a connection with a transaction that is open.
    """
    names = {"first_name": row.first_name, "last_name": row.last_name}
    why: dict[str, t.Any] = {"reason": "It was issued by mistake.", "tell": False}
    work, given = {
        "revoke": (actions.revoke, why),
        "replace": (
            actions.correct,
            {
                **names,
                "completed_at": row.completed_at,
                "template_id": row.template_id,
            },
        ),
        "issue again": (actions.issue_again, {**names, **why, "email": row.email}),
    }[act]

    while not isinstance(bind, sa.Engine) and hasattr(work, "__wrapped__"):
        work = work.__wrapped__

    return work(bind, "default", row.id, **given)


def test_what_the_host_was_told_of_an_erased_member_is_not_noted(
    connected: Connected,
) -> None:
    host, _, _ = connected
    host.complete(member=ADA)
    host.drain()
    ask_for("replace", host.state.engine, host.row())
    told = []

    def erase(app: t.Any, **given: t.Any) -> None:
        told.append(given["member_id"])
        host.credly.erase_member(ADA.id)

    with badge_replaced.connected_to(erase):
        host.drain(2)

    assert told == [ADA.id]
    assert [row.badge_told for row in host.rows()] == [None, None]


class TestEraseInFlight:
    """A worker has the row while the member is erased."""

    @pytest.fixture
    def erased_while_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> cabc.Callable[[Host], None]:
        def drain(host: Host, *, before: bool = False) -> None:
            issue = Client.issue

            def erase(self: Client, token: str, badge: t.Any) -> t.Any:
                def now() -> None:
                    with host.app.app_context():
                        host.credly.erase_member(ADA.id)

                if before:
                    now()

                try:
                    return issue(self, token, badge)
                finally:
                    if not before:
                        now()

            with monkeypatch.context() as patched:
                patched.setattr(Client, "issue", erase)
                host.drain()

        return drain

    @every_database
    def test_a_badge_that_is_made_writes_nothing_back(
        self,
        host: Host,
        credly: CredlySimulator,
        erased_while_sent: cabc.Callable[[Host], None],
    ) -> None:
        issued = []

        with (
            host.app.app_context(),
            badge_issued.connected_to(lambda app, **given: issued.append(given)),
        ):
            connect(host, credly)
            host.complete(member=ADA)
            host.complete(member=GRACE)
            erased_while_sent(host)
            host.make_due()
            host.drain()

            assert named_in(everything(host)) == []
            ada, grace = host.rows()
            assert (ada.state, ada.reason) == ("cancelled", "perhaps issued")
            assert (ada.lease, ada.due_at, ada.badge_id) == (None, None, None)
            assert grace.state == "issued"
            assert [attempt.finished_at is None for attempt in host.attempts()] == [
                False,
                False,
            ]
            assert len(credly.badges_for(ADA.email)) == 1
            assert [given["member_id"] for given in issued] == [GRACE.id]

    @pytest.mark.parametrize("status", [422, 429, 500, 503, 401])
    def test_a_failure_leaves_no_name_in_the_log(
        self,
        connected: Connected,
        erased_while_sent: cabc.Callable[[Host], None],
        monkeypatch: pytest.MonkeyPatch,
        status: int,
    ) -> None:
        host, credly, _ = connected
        # An outage is not waited for.
        monkeypatch.setattr("flask_credly.issuing.dispatcher.SHORT_PAUSE", 0.0)
        body = {
            "data": {"message": f"No {ADA.email}, {ADA.first_name} {ADA.last_name}"}
        }
        credly.fail("issue", status=status, body=body, times=2)
        host.complete(member=ADA)
        host.drain()
        open_again(host)
        credly.fail("look-up", status=status, body=body)
        erased_while_sent(host)
        host.credly.erase_member(ADA.id)

        assert named_in(everything(host)) == []
        assert host.row().state == "cancelled"

    @servers
    @pytest.mark.parametrize("then", ["commit", "rollback"])
    def test_a_worker_that_writes_at_this_moment_is_waited_for(
        self, connected: Connected, then: str
    ) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        engine = host.state.engine
        gate = gates.read(engine, "default")
        assert gate is not None
        (row,) = claim.claim(engine, gate, limit=1, lease_seconds=60)
        said: list[privacy.Erased] = []

        with engine.connect() as worker:
            settle.fail.__wrapped__(worker, row, f"{ADA.email} is refused")  # type: ignore[attr-defined]
            eraser = threading.Thread(
                target=lambda: said.append(privacy.erase(engine, "default", ADA.id))
            )
            eraser.start()
            eraser.join(0.5)
            assert said == []
            getattr(worker, then)()
            eraser.join()

        assert named_in(everything(host)) == []
        assert [erased.log_entries for erased in said] == [then == "commit"]
        assert [row.state for row in host.rows()] == ["cancelled"]

    @servers
    @pytest.mark.parametrize("act", ["replace", "issue again"])
    def test_a_badge_that_an_admin_has_corrected_at_this_moment_is_erased_too(
        self, host: Host, credly: CredlySimulator, act: str
    ) -> None:
        with host.app.app_context():
            connect(host, credly)
            host.complete(member=ADA)
            host.drain()
            row = host.row()
            engine = host.state.engine
            said: list[privacy.Erased] = []

            with engine.connect() as admin:
                assert ask_for(act, admin, row)
                eraser = threading.Thread(
                    target=lambda: said.append(privacy.erase(engine, "default", ADA.id))
                )
                eraser.start()
                eraser.join(0.5)
                assert said == []
                admin.commit()
                eraser.join()

            assert named_in(everything(host)) == []
            assert [each.badges for each in said] == [2]
            old, new = host.rows()
            assert old.erased_at and new.erased_at
            assert (new.state, new.reason, new.due_at) == ("cancelled", "erased", None)
            host.make_due()
            host.drain()
            assert len(credly.badges) == 1

    @servers
    def test_two_erasures_of_one_member_come_to_an_end(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        """Also where the host's transaction still sees the rows as they were."""
        with host.app.app_context():
            connect(host, credly)
            host.complete(member=ADA)
            session = host.db.session
            session.rollback()
            session.execute(sa.update(Mapping).values(course_title="Python"))
            assert session.scalars(sa.select(Issuance.member_id)).all() == [ADA.id]

            assert privacy.erase(host.state.engine, "default", ADA.id).badges == 1
            assert host.credly.erase_member(ADA.id).badges == 0
            session.commit()

            assert named_in(everything(host)) == []

    def test_a_profile_loaded_meanwhile_is_not_saved(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        def member(member_id: str) -> Member:
            host.credly.erase_member(ADA.id)
            return ADA

        host = make_host(member=member)

        with host.app.app_context():
            connect(host, credly)
            host.complete(member=Member(ADA.id, "", ADA.first_name, ADA.last_name))
            host.drain()

            assert named_in(everything(host)) == []
            assert (host.row().state, host.log()) == ("cancelled", [])
            assert credly.count("issue") == 0

    def test_a_claimed_row_is_not_sent(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        host.complete(member=ADA)
        from flask_credly.issuing import token

        get_token = token.get_token

        def erase_first(*args: t.Any, **given: t.Any) -> t.Any:
            host.credly.erase_member(ADA.id)
            return get_token(*args, **given)

        with monkeypatch.context() as patched:
            patched.setattr(token, "get_token", erase_first)
            host.drain()

        assert (host.row().state, credly.count("issue")) == ("cancelled", 0)
        assert named_in(everything(host)) == []


def test_credlys_own_words_name_nobody(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    """A pause is in the log without a badge: an erasure would not find it."""
    host, credly, _ = connected
    caplog.set_level(logging.DEBUG)
    words = f"Too many for {ADA.email.upper()} ({ADA.first_name} {ADA.last_name})."
    credly.fail("issue", status=429, body={"data": {"message": words}})
    host.complete(member=ADA)
    host.drain()

    ((_, details),) = host.log()
    assert details.endswith("Too many for *** (***). (HTTP 429)")
    assert named_in(caplog.text, NAMES[1:]) == []


def test_a_badge_that_was_held_keeps_no_words_that_name_the_member(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    words = f"{ADA.first_name} {ADA.last_name} already has this badge"
    credly.fail("issue", status=422, body={"data": {"message": words}})
    host.complete(member=ADA)
    host.drain()

    assert host.row().state == "held"
    details = host.db.session.scalars(sa.select(Attempt.detail)).all()
    assert details == ["*** already has this badge (HTTP 422)"]
    assert host.row().error == whose.NOT_LISTED


@pytest.mark.slow
def test_redis_holds_nothing_of_the_member(farm: Farm) -> None:
    farm.host.complete(member=ADA)
    farm.run(*WORKER, "--burst")
    farm.host.complete(member=GRACE)
    farm.run("flask", "credly", "erase-member", ADA.id)
    dump = b""

    for key in farm.redis.scan_iter():
        assert isinstance(key, bytes)
        dump += key + (farm.redis.dump(key) or b"")

    assert named_in(dump, (*NAMES, *NAMES_OF_GRACE)) == []
    assert named_in(everything(farm.host)) == []


NAMES_OF_GRACE = (GRACE.id, GRACE.email, GRACE.first_name)


class TestErasePages:
    def test_the_list_and_the_badge_say_so(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        host.credly.erase_member(ADA.id)
        browser = host.app.test_client()

        for address in ("", *(f"?id={row.id}" for row in host.rows()[:1])):
            text = browser.get(f"/integrations/credly/badges{address}").text
            assert "Erased member" in text
            assert "erased-" not in text
            assert named_in(text) == []

        failed = next(row for row in host.rows() if row.reason == "erased")
        text = browser.get(f"/integrations/credly/badges?id={failed.id}").text
        assert REASONS["erased"] in text
        assert "Retry the badge" not in text

    def test_so_does_the_export(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        host.credly.erase_member(ADA.id)
        answer = host.app.test_client().get("/integrations/credly/badges.csv")
        rows = list(csv.reader(io.StringIO(answer.text)))[1:]

        assert [row[1] for row in rows].count("Erased member") == 4
        assert {tuple(row[2:5]) for row in rows if row[1] == "Erased member"} == {
            ("", "", "")
        }
        assert named_in(answer.text) == []

    def test_the_error_log_keeps_the_badge(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        host.credly.erase_member(ADA.id)

        text = host.app.test_client().get("/integrations/credly").text

        assert "badge “SQL basics Badge” to a member who was erased." in text
        assert named_in(text) == []

    def test_a_retry_is_refused(self, connected: Connected) -> None:
        host, _, _ = connected
        host.complete(member=ADA)
        host.credly.erase_member(ADA.id)
        row = host.row()

        assert issuances.retry(host.state.engine, "default", row.id) == 0
        assert host.row().state == "cancelled"


class TestEraseCommand:
    def test_it_says_what_it_did(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        at_credly = [badge["id"] for badge in credly.badges_for(ADA.email)]

        said = run(host, "erase-member", ADA.id)

        assert "Badges without personal data now: 4" in said
        assert "queued and now skipped: 1" in said
        assert "Error log entries redacted: 1" in said
        assert "sent to Credly: 3\n" in said
        assert said.rindex("Of these") < said.index("Error log")  # they are badges
        assert "Ask Credly to erase this data." in said
        assert re.findall(r"Badge at Credly: (.+)", said) == at_credly
        assert len(at_credly) == 1
        assert named_in(everything(host)) == []

    def test_credly_need_not_be_asked_for_what_it_never_got(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        host.complete(member=ADA)

        said = run(host, "erase-member", ADA.id)

        assert "queued and now skipped: 1" in said
        assert "Credly" not in said

    def test_what_is_only_deleted_is_said_too(self, connected: Connected) -> None:
        host, _, _ = connected
        completion_withdrawn.send(host.app, member_id=ADA.id, course_id="py-101")

        said = run(host, "erase-member", ADA.id)

        assert "Badges without personal data now: 0\n" in said
        assert "Withdrawals and differences deleted: 1\n" in said
        assert host.rows() == []
        trail = host.db.session.scalars(sa.select(AuditEntry.action)).all()
        assert trail == ["erase member"]

    def test_nobody_is_said_to_be_nobody(self, connected: Connected) -> None:
        said = run(connected.host, "erase-member", "nobody")
        assert said == "There is no data about this member.\n"

    def test_a_wrong_id_is_an_error(self, connected: Connected) -> None:
        runner = connected.host.app.test_cli_runner()

        for command in ("erase-member", "export-member"):
            found = runner.invoke(args=["credly", command, ""])
            assert found.exit_code == 2
            assert "ID must be a string of 1 to 191 characters." in found.output


class TestExport:
    @every_database
    def test_it_holds_all_of_the_member_and_nothing_of_others(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        text = run(host, "export-member", ADA.id)
        found = json.loads(text)

        assert found == host.credly.export_member(ADA.id)
        assert found["member_id"] == ADA.id
        assert [badge["state"] for badge in found["badges"]] == [
            "issued",
            "failed",
            "held",
            "none",
        ]
        issued, failed, test, _ = found["badges"]
        assert [issued["email"], issued["first_name"]] == [ADA.email, ADA.first_name]
        assert dt.datetime.fromisoformat(issued["completed_at"]).tzinfo
        assert issued["badge_id"] == credly.badges_for(ADA.email)[0]["id"]
        assert test["test"] is True
        assert len(failed["attempts_made"]) == 2
        assert failed["attempts_made"][0]["status"] == 422
        assert [ADA.email in each["details"] for each in failed["error_log"]] == [True]
        assert named_in(text, NAMES_OF_GRACE) == []

    def test_it_leaves_out_nothing_but_the_lease(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        *_, failed, _ = [
            badge
            for badge in host.credly.export_member(ADA.id)["badges"]
            if badge["state"] == "failed" or badge["test"]
        ]
        ours = {"attempts_made", "error_log", "sent_to_credly"}
        assert set(failed) - ours == set(Issuance.__table__.columns.keys()) - {"lease"}

    def test_what_was_sent_is_what_credly_received(self, connected: Connected) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        sent = [
            frozenset(t.cast(dict[str, str], each.json))
            for each in credly.received
            if each.kind == "issue"
        ]
        badges = host.credly.export_member(ADA.id)["badges"]

        assert [bool(badge["sent_to_credly"]) for badge in badges] == [
            True,
            True,
            True,
            False,
        ]
        assert set(sent) == {frozenset(privacy.SENT_TO_CREDLY)}

    def test_of_nobody_there_is_nothing(self, connected: Connected) -> None:
        found = json.loads(run(connected.host, "export-member", "nobody"))
        assert found == {"member_id": "nobody", "badges": [], "differences": []}


class TestPrune:
    @every_database
    def test_by_default_it_forgets_the_log_after_ninety_days(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        live_a_life(host, credly)
        cover(host, days=89)
        before = everything(host)
        run(host, "prune")
        assert everything(host) == before

        cover(host, days=91)
        rows = [(row.state, row.email, row.settled_at) for row in host.rows()]
        said = run(host, "prune")

        assert (host.log(), host.attempts()) == ([], [])
        assert [(row.state, row.email, row.settled_at) for row in host.rows()] == rows
        assert re.search(r"Error log entries deleted +2\n", said)
        assert re.search(r"Request records deleted +7\n", said)
        assert re.search(r"Badges with personal data removed +kept\n", said)

    @every_database
    def test_names_are_emptied_where_wanted(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(
            CREDLY_PERSONAL_DATA_DAYS=30, CREDLY_LOG_DAYS=None
        )
        live_a_life(host, credly)
        cover(host, days=31)
        said = run(host, "prune")

        named = [row for row in host.rows() if row.email + row.first_name]
        assert [row.state for row in named] == ["none"]
        # The entries name members, so that they go as well.
        assert host.log() == []
        assert len(host.attempts()) == 7
        assert re.search(r"Badges with personal data removed +5\n", said)
        assert re.search(r"Request records deleted +kept\n", said)

        # One badge a member and course, all the same.
        host.complete(member=GRACE)
        host.drain()
        assert len(credly.badges_for(GRACE.email)) == 1
        assert len(host.rows()) == 6

    def test_a_badge_that_failed_can_be_retried_with_a_fresh_profile(
        self, make_connected: MakeConnected, credly: CredlySimulator
    ) -> None:
        credly.posts_allowed = 3
        host, _, _ = make_connected(CREDLY_PERSONAL_DATA_DAYS=1, member=lambda _: ADA)
        credly.fail("issue", status=422, times=2)
        host.complete(member=ADA)
        host.drain(2)
        cover(host, days=2)
        jobs.prune()
        assert named_in(everything(host)) == [ADA.id]

        run(host, "retry", "--all")
        host.drain()

        assert host.row().state == "issued"

    def test_it_goes_on_lot_by_lot(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, _, _ = connected
        monkeypatch.setattr(retention, "BATCH_SIZE", 3)
        now = dt.datetime.now(dt.UTC)
        session = host.db.session
        session.add_all(
            LogEntry(
                tenant="default",
                at=now - dt.timedelta(days=number % 2 * 100),
                error="API Rate Limit",
                details=str(number),
            )
            for number in range(20)
        )
        session.commit()
        lots = []
        forget = retention._forget

        def count(*args: t.Any) -> int:
            lots.append(forget(*args))
            return lots[-1]

        monkeypatch.setattr(retention, "_forget", count)
        jobs.prune()

        assert lots == [3, 3, 3, 1]
        assert {int(details) % 2 for _, details in host.log()} == {0}
        assert len(host.log()) == 10

    def test_a_dry_run_counts_and_changes_nothing(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_PERSONAL_DATA_DAYS=30)
        live_a_life(host, credly)
        cover(host, days=100)
        before = everything(host)
        said = run(host, "prune", "--dry-run")

        assert said.startswith("Dry run. Nothing was changed. This would be done:\n")
        assert re.findall(r" (\d+)\n", said) == ["2", "7", "5", *"0000"]
        assert everything(host) == before
        found = re.findall(r" (\d+)\n", run(host, "prune"))
        assert found == ["2", "7", "5", *"0000"]

    def test_a_worker_told_to_stop_leaves_the_rest_to_the_next_day(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_PERSONAL_DATA_DAYS=30)
        live_a_life(host, credly)
        cover(host, days=100)
        before = everything(host)
        stop = threading.Event()
        stop.set()
        done = retention.prune(host.state.engine, host.state.settings, stop=stop)

        assert {each.rows for each in done} == {0}
        assert everything(host) == before

    def test_what_was_retried_meanwhile_keeps_its_names(
        self, make_connected: MakeConnected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = make_connected(CREDLY_PERSONAL_DATA_DAYS=1)
        credly.fail("issue", status=422, times=2)
        host.complete(member=ADA)
        host.drain(2)
        cover(host, days=2)
        forget = retention._forget

        def retry_first(*args: t.Any) -> int:
            issuances.retry(host.state.engine, "default", host.row().id)
            return forget(*args)

        monkeypatch.setattr(retention, "_forget", retry_first)
        jobs.prune()

        assert host.row().email == ADA.email

    @pytest.mark.slow
    def test_a_worker_does_it_once_a_day(self, farm: Farm) -> None:
        session = farm.host.db.session
        session.add(
            LogEntry(
                tenant="default",
                at=dt.datetime.now(dt.UTC) - dt.timedelta(days=91),
                error="API Rate Limit",
                details="old",
            )
        )
        session.commit()
        farm.start(*WORKER)
        wait_for(lambda: not farm.host.log())
        queue = notifier.web_queue(farm.host.state)
        key = f"flask-credly:prune:{queue.name}"
        assert 80_000 < t.cast(int, queue.connection.ttl(key)) <= 86_400

    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_what_was_completed_in_the_moment_of_remove_is_deleted(
        self, connected: Connected
    ) -> None:
        # Elsewhere one of them waits for the other.
        host, _, _ = connected
        session = host.db.session()
        host.complete(member=ADA, session=session)
        accounts.remove(host.state)
        session.commit()
        assert [row.email for row in host.rows()] == [ADA.email]

        said = run(host, "prune")

        assert host.rows() == []
        assert re.search(r"Badges of removed integrations deleted +1\n", said)

    def test_it_works_without_a_connection(self, host: Host) -> None:
        assert "Error log entries deleted" in run(host, "prune")


def test_remove_leaves_no_name_without_an_address(
    make_connected: MakeConnected,
) -> None:
    host, credly, _ = make_connected(
        member=lambda _: Member(ADA.id, "", ADA.first_name, ADA.last_name)
    )
    credly.fail("issue", status=422)
    host.complete(member=ADA)
    host.drain(2)
    assert (host.row().email, host.row().first_name) == ("", ADA.first_name)

    accounts.remove(host.state)

    assert named_in(everything(host)) == [ADA.id]


def test_every_column_is_listed() -> None:
    page = pathlib.Path(__file__).parent.parent / "docs/privacy.md"
    listed: dict[str, list[str]] = {}

    for line in page.read_text().splitlines():
        if found := re.match(r"\| `(credly_\w+)` \| (.+?) \|", line):
            listed.setdefault(found[1], []).extend(re.findall(r"`(\w+)`", found[2]))

    assert {name: sorted(columns) for name, columns in listed.items()} == {
        table.name: sorted(table.columns.keys())
        for table in Base.metadata.sorted_tables
    }
