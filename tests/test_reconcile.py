"""The host, the ledger and Credly side by side."""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import json
import time
import typing as t

import hypothesis
import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import COURSES
from conftest import every_database
from conftest import MakeHost
from hypothesis import strategies as st

from flask_credly import accounts
from flask_credly import badge_issued
from flask_credly.catalog import DEFAULT_TENANT
from flask_credly.issuing import reconcile
from flask_credly.issuing.comparison import BUCKETS
from flask_credly.issuing.sender import earner_id
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import privacy
from flask_credly.models import Attempt
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.sites import make_site

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

LONG_AGO = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)

DIFFERENCES = [each for each in BUCKETS if each not in ("agreed", "not_ours")]


class Trio:
    """The three sides, each of which a test may damage."""

    def __init__(self, make_host: MakeHost, credly: CredlySimulator, **given: t.Any):
        self.completed: dict[str, dt.datetime] = {}
        self.nameless: set[str] = set()
        self.host = make_host(past_completions=self._past, **given)
        self.credly = credly

    def _past(self, course: t.Any, since: t.Any) -> t.Any:
        if course.id == "py-101":
            for member_id, at in list(self.completed.items()):
                member = a_member(member_id)

                if member_id in self.nameless:
                    member = dataclasses.replace(member, first_name="")

                yield member, at

    def connect(self, **given: t.Any) -> t.Self:
        self.template_id = connect(self.host, self.credly, **given).template_id
        return self

    def begin_anew(self) -> None:
        """Forget all badges."""
        self.completed.clear()
        self.credly.reset()
        session = self.host.db.session
        session.rollback()

        for model in (Attempt, Issuance, Batch):
            session.execute(sa.delete(model))

        session.commit()

    def issue(self, *member_ids: str) -> None:
        """Let members complete the course, and have the badge for a while."""
        for member_id in member_ids:
            self.completed[member_id] = AT
            self.host.complete(member_id, completed_at=AT)

        self.host.drain(2)
        self.age()

    def age(self) -> None:
        """Let all that was written be long ago."""
        self.write(recorded_at=LONG_AGO, unsettled_until=None, checked_at=LONG_AGO)
        self.write(Issuance.settled_at.is_not(None), settled_at=LONG_AGO)
        self.write(Issuance.due_at.is_not(None), due_at=LONG_AGO)

    def write(self, *these: t.Any, **values: t.Any) -> None:
        session = self.host.db.session
        session.rollback()
        session.execute(sa.update(Issuance).where(*these).values(**values))
        session.commit()

    def row(self, member_id: str) -> Issuance:
        (row,) = (each for each in self.host.rows() if each.member_id == member_id)
        return row

    def badge_of(self, member_id: str) -> dict[str, t.Any]:
        (badge,) = self.credly.badges_for(earner_id=self.earner(member_id))
        return badge

    def earner(self, member_id: str) -> str:
        key = self.host.db.session.scalar(sa.select(Installation.key))
        assert key is not None
        return earner_id(key, member_id, DEFAULT_TENANT)

    def award(self, member_id: str, at: dt.datetime = AT, **given: t.Any) -> str:
        """Let a badge of ours be at Credly that the ledger does not know."""
        member = a_member(member_id)
        return self.credly.award(
            given.pop("template_id", self.template_id),
            member.email,
            first_name=member.first_name,
            last_name=member.last_name,
            issuer_earner_id=self.earner(member_id),
            issued_at=at,
            **given,
        )

    def run(self, *args: str) -> tuple[int, str]:
        result = self.host.app.test_cli_runner().invoke(
            args=["credly", "reconcile", *args]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exc_info
        )
        return result.exit_code, result.output

    def compare(self, *args: str) -> tuple[int, dict[str, t.Any]]:
        code, output = self.run("--json", *args)
        return code, json.loads(output)

    def differing(self, *args: str) -> dict[str, int]:
        """Compare to the end. Get what differs."""
        code, found = self.compare(*args)
        assert found["complete"] and list(found["counts"]) == list(BUCKETS)
        differing: dict[str, int] = {
            each: number for each in DIFFERENCES if (number := found["counts"][each])
        }
        assert code == bool(differing)
        return differing

    def repair(self, bucket: str, number: int) -> dict[str, int]:
        args = ("--repair", bucket, "--confirm", str(number))
        code, found = self.compare(*args)
        assert code == 0
        return t.cast("dict[str, int]", found)


def forget(trio: Trio, member_id: str) -> None:
    session = trio.host.db.session
    session.rollback()
    session.execute(sa.delete(Issuance).where(Issuance.member_id == member_id))
    session.commit()


def made_older(trio: Trio) -> None:
    """Let what changed at Credly be a day ago."""
    for entry in trio.credly.book.entries.values():
        if entry.row["state_updated_at"] is not None:
            entry.row["state_updated_at"] = "2026-03-03T00:00:00.000Z"


@pytest.fixture
def trio(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Trio]:
    made = Trio(make_host, credly)

    with made.host.app.app_context():
        yield made.connect()


def test_all_agree(trio: Trio) -> None:
    trio.issue("1", "2")
    trio.credly.award(trio.template_id, "stranger@example.org")
    code, found = trio.compare()

    assert (code, found["complete"]) == (0, True)
    assert found["counts"] == dict.fromkeys(BUCKETS, 0) | {"agreed": 2, "not_ours": 1}


def test_nothing_is_written(trio: Trio) -> None:
    trio.issue("1")
    trio.award("2")
    trio.completed["3"] = AT

    def written() -> list[t.Any]:
        trio.host.db.session.rollback()
        tables = trio.host.db.metadata.sorted_tables
        return [
            trio.host.db.session.execute(sa.select(table)).all()
            for table in tables
            if table.name != "credly_account"
        ]

    before = written()
    assert trio.differing()
    assert written() == before


class TestEachDamage:
    """Each is named, and nothing else is; what has one right answer is repaired."""

    def test_not_recorded(self, trio: Trio) -> None:
        trio.issue("1")
        trio.completed |= {"2": AT, "3": AT}
        assert trio.differing() == {"not_recorded": 2}

        assert trio.repair("not_recorded", 2)["done"] == 2
        rows = [trio.row(each) for each in ("2", "3")]
        assert {(row.state, row.bulk, row.email) for row in rows} == {
            ("none", True, f"member-{row.member_id}@example.org") for row in rows
        }
        batch = trio.host.db.session.scalars(sa.select(Batch)).one()
        assert {row.batch_id for row in rows} == {batch.id}
        assert batch.state == "recorded"
        assert trio.differing() == {}
        trio.host.drain()
        trio.age()
        assert trio.differing() == {}
        assert len(trio.credly.badges) == 3

    def test_a_member_without_a_name_is_not_to_be_recorded(self, trio: Trio) -> None:
        trio.completed["9"] = AT
        trio.nameless.add("9")
        assert trio.differing() == {}

    def test_waiting_too_long(self, trio: Trio) -> None:
        trio.completed["1"] = AT
        trio.host.complete("1", completed_at=AT)
        assert trio.differing() == {}
        trio.age()
        assert trio.differing() == {"waiting_too_long": 1}

    def test_unknown_here(self, trio: Trio) -> None:
        trio.issue("1", "2")
        badge_id = trio.badge_of("2")["id"]
        forget(trio, "2")
        assert trio.differing() == {"unknown_here": 1}
        told: list[t.Any] = []

        def hear(sender: object, **given: t.Any) -> None:
            told.append((given["member_id"], given["course_id"], given["badge_id"]))

        with badge_issued.connected_to(hear, trio.host.app):
            assert trio.repair("unknown_here", 1)["done"] == 1

        row = trio.row("2")
        assert (row.state, row.action, row.badge_id) == ("issued", None, badge_id)
        assert (row.email, row.first_name) == ("member-2@example.org", "Ada")
        assert (row.completed_at, row.badge_state) == (AT, "pending")
        assert told == [("2", "py-101", badge_id)]
        assert trio.differing() == {}
        trio.host.drain()
        assert len(trio.credly.badges) == 2

    @pytest.mark.parametrize("state", ["failed", "held", "none", "cancelled"])
    def test_failed_here(self, trio: Trio, state: str) -> None:
        trio.issue("1", "2")
        badge = trio.badge_of("2")
        waits = {"action": "issue", "due_at": LONG_AGO} if state == "none" else {}
        trio.write(
            Issuance.member_id == "2",
            **dict.fromkeys(("badge_id", "badge_state", "checked_at", "accept_url")),
            state=state,
            error="No answer.",
            **waits,
        )
        assert trio.differing() == {"failed_here": 1}
        trio.credly.accept(badge["id"])
        assert trio.repair("failed_here", 1)["done"] == 1

        row = trio.row("2")
        assert (row.state, row.action, row.badge_id) == ("issued", None, badge["id"])
        assert (row.badge_state, row.error) == ("accepted", None)
        assert trio.differing() == {}

    def test_failed_here_as_it_was_removed_after_its_worker_had_died(
        self, trio: Trio
    ) -> None:
        """Nobody ever gives its lease back."""
        trio.completed["1"] = AT
        trio.host.complete("1", completed_at=AT)
        engine = trio.host.state.engine
        gate = gates.read(engine, DEFAULT_TENANT)
        assert gate is not None
        rows = claim.claim(engine, gate, limit=1, lease_seconds=60)
        assert claim.begin(engine, rows, gate, lease_seconds=60)
        badge_id = trio.award("1")
        accounts.remove(trio.host.state)
        connect_and_map(trio.host, trio.credly, trio.template_id)
        assert trio.differing() == {}  # It may still be on its way.
        trio.age()
        assert trio.differing() == {"failed_here": 1}
        assert trio.repair("failed_here", 1)["done"] == 1
        row = trio.row("1")
        assert (row.state, row.badge_id, row.lease) == ("issued", badge_id, None)
        assert trio.differing() == {}

    @pytest.mark.parametrize(
        "damage",
        [
            {"badge_state": "accepted"},
            {"badge_state": "revoked", "state": "revoked"},
            {"badge_state": None},
            {"state": "revoked"},
            {"expires_at": AT},
        ],
        ids=str,
    )
    def test_state_differs_here(self, trio: Trio, damage: dict[str, t.Any]) -> None:
        trio.issue("1", "2")
        trio.write(Issuance.member_id == "1", **damage)
        assert trio.differing() == {"state_differs": 1}
        assert trio.repair("state_differs", 1)["done"] == 1
        row = trio.row("1")
        assert (row.state, row.badge_state) == ("issued", "pending")
        assert row.expires_at is None
        assert trio.differing() == {}

    @pytest.mark.parametrize("act", ["accept", "reject", "revoke_badge"])
    def test_state_differs_there(self, trio: Trio, act: str) -> None:
        trio.issue("1")
        getattr(trio.credly, act)(trio.badge_of("1")["id"])
        # By Credly's clock it is a minute ago, and lists lag.
        assert trio.differing() == {}
        made_older(trio)
        assert trio.differing() == {"state_differs": 1}
        assert trio.repair("state_differs", 1)["done"] == 1
        assert trio.row("1").badge_state == trio.badge_of("1")["state"]
        assert trio.differing() == {}

    def test_not_at_credly(self, trio: Trio) -> None:
        trio.issue("1", "2")
        trio.credly.delete_badge(trio.badge_of("1")["id"])
        assert trio.differing() == {"not_at_credly": 1}
        code, _ = trio.run("--repair", "not_at_credly", "--confirm", "1")
        assert code == 2

    def test_what_was_issued_today_is_not_missed(self, trio: Trio) -> None:
        trio.issue("1")
        trio.credly.delete_badge(trio.badge_of("1")["id"])
        trio.write(settled_at=dt.datetime.now(dt.UTC) - dt.timedelta(hours=23))
        code, found = trio.compare()
        assert (code, found["moving"]) == (0, 1)

    @pytest.mark.parametrize(
        "damage",
        [
            {"template_id": "00000000-0000-4000-8000-000000000001"},
            {"issued_at": AT - dt.timedelta(days=3)},
            {"email": "another@example.org"},
        ],
        ids=str,
    )
    def test_differs(self, trio: Trio, damage: dict[str, t.Any]) -> None:
        trio.issue("1", "2")
        trio.write(Issuance.member_id == "1", **damage)
        assert trio.differing() == {"differs": 1}

    @pytest.mark.slow
    @pytest.mark.parametrize("hour", [0, 12, 23])
    @pytest.mark.parametrize(
        "shown",
        ["2026-03-01", "2026-03-01 00:00:00 -0500", "2026-03-02T00:00:00+09:00"],
    )
    def test_a_day_in_whichever_zone_is_no_difference(
        self, trio: Trio, hour: int, shown: str
    ) -> None:
        """Nor does it keep a badge from being the row's."""
        at = AT.replace(hour=hour)
        trio.completed["1"] = at
        trio.host.complete("1", completed_at=at)
        trio.host.drain(2)
        trio.age()
        trio.credly.book.entries[trio.badge_of("1")["id"]].row["issued_at"] = shown
        assert trio.differing() == {}
        trio.write(state="failed", badge_id=None)
        assert trio.differing() == {"failed_here": 1}
        trio.repair("failed_here", 1)
        assert trio.differing() == {}

    def test_no_longer_completed(self, trio: Trio) -> None:
        trio.issue("1", "2")
        del trio.completed["1"]
        assert trio.differing() == {"no_longer_completed": 1}
        # Who completed it before that day is not asked.
        assert trio.differing("--since", "2026-01-01") == {}

    def test_twice(self, make_host: MakeHost, credly: CredlySimulator) -> None:
        made = Trio(make_host, credly)

        with made.host.app.app_context():
            made.connect(allow_duplicate_badges=True)
            made.issue("1")
            made.award("1", AT + dt.timedelta(days=1))
            assert made.differing() == {"unknown_here": 1}
            made.repair("unknown_here", 1)
            made.age()
            assert made.differing() == {}
            assert [row.cycle for row in made.host.rows()] == [1, 2]
            credly.change_template(made.template_id, allow_duplicate_badges=False)
            accounts.sync_templates(made.host.state)
            assert made.differing() == {"twice": 1}


def test_without_the_host_whose_it_is_is_known_by_another_row(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """The badge of a member who is in the ledger with another course."""
    made = Trio(make_host, credly)
    state = made.host.app.extensions["credly"]
    made.host.app.extensions["credly"] = dataclasses.replace(
        state, past_completions=None
    )

    with made.host.app.app_context():
        made.connect()
        other = credly.add_template("SQL")
        accounts.sync_templates(made.host.state)
        accounts.add_mapping(made.host.state, COURSES[1], other)
        made.issue("1")
        badge_id = made.award("1", template_id=other)
        made.award("2", template_id=other)
        code, found = made.compare()
        assert (code, found["host"]) == (1, False)
        assert found["counts"]["unknown_here"] == found["counts"]["not_ours"] == 1
        # Two courses have that template, and nothing says which it is.
        second = accounts.add_mapping(made.host.state, COURSES[2], other)
        assert made.repair("unknown_here", 1)["no_course"] == 1
        accounts.remove_mapping(made.host.state, second.id)
        assert made.repair("unknown_here", 1)["done"] == 1
        assert [(row.course_id, row.badge_id) for row in made.host.rows()][1:] == [
            ("sql", badge_id)
        ]
        assert made.differing() == {}


def test_a_member_who_was_erased_stays_so(trio: Trio) -> None:
    """Also where the host still says who it was."""
    trio.issue("1", "2")
    privacy.erase(trio.host.state.engine, "default", "2")
    code, found = trio.compare()
    assert (code, found["counts"]["not_ours"]) == (0, 1)


def test_communities_of_one_organization(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """What the other one has issued is not ours: members of both may have one id."""
    site = make_site(make_host, credly)

    with site.host.app.app_context():
        for tenant in ("acme", "beta"):
            site.connect(tenant, credly, allow_duplicate_badges=True)
            site.complete(tenant)

        site.host.drain(2)

        for tenant in ("acme", "beta"):
            found = json.loads(site.run("reconcile", "--json", "--tenant", tenant))
            assert found["counts"] == {
                **dict.fromkeys(BUCKETS, 0),
                **{"agreed": 1, "not_ours": 1},
            }

        said = site.run("reconcile", exit_code=2)
        assert "--tenant acme|beta" in said


class TestReading:
    @pytest.mark.parametrize("how", ["refused", "unreadable", "lost"])
    def test_what_is_not_read_to_its_end_says_nothing_of_what_is_missing(
        self, trio: Trio, how: str
    ) -> None:
        trio.issue("1", "2", "3", "5")
        trio.completed["4"] = AT
        trio.credly.delete_badge(trio.badge_of("1")["id"])
        trio.credly.accept(trio.badge_of("2")["id"])
        made_older(trio)

        if how == "refused":
            trio.credly.search_page_size = 1
            trio.credly.cursor_seconds = 0
        elif how == "lost":
            trio.credly.search_page_size = 1
            trio.credly.search_repeats_cursor = True
        else:
            trio.credly.book.entries[trio.badge_of("3")["id"]].row["id"] = "odd"

        code, found = trio.compare()
        assert (code, found["complete"], len(found["unread"])) == (2, False, 1)
        assert found["counts"]["not_at_credly"] == 0
        assert found["counts"]["not_recorded"] == 0
        code, said = trio.run()
        assert code == 2
        assert "Nothing is said about what is missing there." in said
        code, said = trio.run("--repair", "not_recorded", "--confirm", "1")
        assert (code, "Nothing was repaired" in said) == (2, True)
        assert len(trio.host.rows()) == 4

    def test_a_badge_of_a_state_that_is_not_known_is_there(self, trio: Trio) -> None:
        trio.issue("1")
        trio.credly.book.entries[trio.badge_of("1")["id"]].row["state"] = "frozen"
        assert trio.differing() == {}

    @pytest.mark.parametrize("field", ["issuer_earner_id", "recipient_email"])
    def test_a_text_that_cannot_be_written_is_that_of_a_stranger(
        self, trio: Trio, field: str
    ) -> None:
        trio.issue("1")
        stranger = trio.credly.award(trio.template_id, "stranger@example.org")
        trio.credly.book.entries[stranger].row[field] = "half a \ud83d"
        code, found = trio.compare()
        assert (code, found["counts"]["not_ours"]) == (0, 1)

    def test_pages_that_lead_back_are_no_end(
        self, trio: Trio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trio.issue("1", "2", "3", "4", "5", "6")
        trio.credly.search_page_size = 1
        given: list[str] = []
        was = trio.credly.cursors.give

        def give(*about: t.Any) -> str:
            assert len(given) < 10
            given.append(given[-2] if len(given) > 2 else was(*about))
            return given[-1]

        monkeypatch.setattr(trio.credly.cursors, "give", give)
        code, found = trio.compare()
        assert (code, found["complete"]) == (2, False)
        assert found["unread"] == ["The pages of Credly's list lead nowhere."]

    def test_a_cursor_that_was_forgotten_is_no_end(self, trio: Trio) -> None:
        trio.issue("1", "2", "3")
        trio.credly.search_page_size = 1
        read: list[int] = []

        def forget_cursors(number: int) -> None:
            if not read:
                trio.credly.cursors.clear()

            read.append(number)

        with reconcile.compare(trio.host.state, progress=forget_cursors) as found:
            assert found.complete
            assert found.comparison.counts()["agreed"] == 3

        assert read == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 429, "headers": {"Retry-After": "1"}},
            {"status": 503},
            {"how": "truncate"},
            {"how": "reset"},
        ],
        ids=str,
    )
    def test_what_passes_is_waited_for(
        self, trio: Trio, fault: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gates, "FIRST_PAUSE", 0.1)
        trio.issue("1", "2", "3")
        trio.credly.fail("search", **fault)
        assert trio.differing() == {}
        gate = gates.read(trio.host.state.engine, "default")
        assert gate is not None and gate.is_open and not gate.probing

    def test_badges_that_wait_go_first(
        self, trio: Trio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It takes at most every fourth of the time of requests."""
        slept: list[float] = []
        trio.issue("1", "2", "3")
        trio.credly.search_page_size = 1
        monkeypatch.setattr(
            reconcile.Asker, "_sleep", lambda _, each: slept.append(each)
        )
        assert trio.differing() == {}
        assert slept == []
        trio.host.complete("4", completed_at=AT)
        trio.completed["4"] = AT
        assert trio.differing() == {}
        # Before the first, nothing was asked yet.
        assert len(slept) == 3 and slept[0] == 0 and min(slept[1:]) > 0

    def test_the_pace_is_kept(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        made = Trio(make_host, credly, CREDLY_MAX_PER_SECOND=20)

        with made.host.app.app_context():
            made.connect()
            made.issue(*"123456")
            credly.search_page_size = 1
            begun = time.time()
            assert made.differing() == {}

        times = [each.at for each in credly.received if each.kind == "search"]
        assert len(times) == 6 and times[-1] - begun >= 5 / 20

    def test_a_closed_gate_is_respected(self, trio: Trio) -> None:
        trio.issue("1")
        gates.switch(trio.host.state.engine, "default", on=False)
        before = trio.credly.count("look-up")
        code, found = trio.compare()
        assert (code, found["complete"]) == (2, False)
        assert trio.credly.count("look-up") == before

    def test_a_hook_that_fails(self, trio: Trio) -> None:
        trio.issue("1", "2")
        del trio.completed["1"]
        trio.completed["3"] = t.cast(t.Any, "soon")
        code, found = trio.compare()
        assert (code, found["complete"]) == (2, False)
        assert found["counts"]["no_longer_completed"] == 0

    def test_no_connection(self, make_host: MakeHost) -> None:
        host = make_host()
        result = host.app.test_cli_runner().invoke(args=["credly", "reconcile"])
        assert (result.exit_code, "not connected" in result.output) == (2, True)


class TestRepairing:
    def test_the_number_has_to_be_right(self, trio: Trio) -> None:
        trio.completed |= {"1": AT, "2": AT}
        code, said = trio.run("--repair", "not_recorded", "--confirm", "3")
        assert (code, "there are 2 now" in said) == (1, True)
        assert trio.run("--repair", "not_recorded")[0] == 2
        assert trio.host.rows() == []

    def test_not_more_than_so_many_at_once(
        self, trio: Trio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(comparisons, "AT_MOST", 2)
        trio.completed |= dict.fromkeys("12345", AT)
        assert trio.repair("not_recorded", 5) == {
            **{"done": 2, "skipped": 0, "no_course": 0},
            "left": 3,
        }
        assert trio.differing() == {"not_recorded": 3}

    def test_it_stands_in_the_trail(self, trio: Trio) -> None:
        trio.completed["1"] = AT
        trio.repair("not_recorded", 1)
        trio.repair("not_recorded", 0)
        trail = trio.host.db.session.scalars(
            sa.select(AuditEntry).where(AuditEntry.action == "repair")
        )
        assert [(each.actor, each.target, each.outcome) for each in trail] == [
            ("command line", "not recorded: 1", "ok")
        ]

    @pytest.mark.parametrize("bucket", comparisons.REPAIRED)
    def test_what_has_changed_since_is_left(self, trio: Trio, bucket: str) -> None:
        trio.issue("1")
        badge_id = trio.badge_of("1")["id"]

        if bucket == "not_recorded":
            trio.completed["2"] = AT
        elif bucket == "unknown_here":
            forget(trio, "1")
        elif bucket == "failed_here":
            trio.write(state="failed", badge_id=None)
        else:
            trio.write(badge_state="accepted")

        with reconcile.compare(trio.host.state) as found:
            differences = list(found.comparison.differences(t.cast(t.Any, bucket)))

        assert len(differences) == 1

        if bucket == "not_recorded":
            trio.host.complete("2", completed_at=AT)
        elif bucket == "unknown_here":
            trio.host.complete("1", completed_at=AT)
            trio.write(badge_id=badge_id, state="issued", action=None, due_at=None)
        elif bucket == "failed_here":
            trio.write(state="none", action="issue", due_at=LONG_AGO)
        else:
            trio.write(badge_state="rejected")

        before = [(row.id, row.state, row.badge_state) for row in trio.host.rows()]
        done = reconcile.repair(
            trio.host.state, t.cast(t.Any, bucket), differences, by="an admin"
        )
        assert (done.done, done.skipped) == (0, 1)
        rows = trio.host.rows()
        assert [(row.id, row.state, row.badge_state) for row in rows] == before

    @every_database
    @pytest.mark.parametrize("bucket", ["unknown_here", "not_recorded"])
    def test_a_member_who_is_erased_meanwhile_does_not_come_back(
        self, trio: Trio, monkeypatch: pytest.MonkeyPatch, bucket: str
    ) -> None:
        """Also where no row names the member."""
        trio.completed |= {"1": AT, "2": AT}

        if bucket == "unknown_here":
            trio.issue("1", "2")
            forget(trio, "1")
            forget(trio, "2")

        recording = backfills.record if bucket == "not_recorded" else reconcile.repair

        def erase(*given: t.Any, **more: t.Any) -> t.Any:
            del trio.completed["1"]
            trio.host.credly.erase_member("1")
            return recording(*given, **more)

        where = backfills if bucket == "not_recorded" else reconcile
        monkeypatch.setattr(where, recording.__name__, erase)
        done = trio.repair(bucket, 2)
        assert (done["done"], done["skipped"]) == (1, 1)
        assert [row.member_id for row in trio.host.rows()] == ["2"]
        runs = trio.host.db.session.scalars(sa.select(Batch.verb)).all()
        assert "compare" not in runs

    def test_it_can_be_stopped_on_its_page(
        self, trio: Trio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trio.completed["1"] = AT
        repair = reconcile.repair

        def stop(*given: t.Any, **more: t.Any) -> t.Any:
            (run_id,) = trio.host.db.session.scalars(sa.select(Batch.id)).all()
            trio.host.db.session.rollback()
            assert comparisons.stop(trio.host.state.engine, "default", run_id)
            return repair(*given, **more)

        monkeypatch.setattr(reconcile, "repair", stop)
        assert trio.repair("not_recorded", 1)["done"] == 0
        assert trio.host.rows() == []

    def test_not_while_another_comparison_goes_on(self, trio: Trio) -> None:
        trio.completed["1"] = AT
        comparisons.start(trio.host.state.engine, "default")
        code, said = trio.run("--repair", "not_recorded", "--confirm", "1")
        assert (code, "a comparison with Credly is running" in said) == (1, True)
        assert trio.host.rows() == []

    def test_a_badge_of_another_row_is_not_adopted(self, trio: Trio) -> None:
        trio.issue("1", "2")
        forget(trio, "2")

        with reconcile.compare(trio.host.state) as found:
            differences = list(found.comparison.differences("unknown_here"))

        trio.write(badge_id=trio.badge_of("2")["id"])
        done = reconcile.repair(
            trio.host.state, "unknown_here", differences, by="an admin"
        )
        assert (done.done, done.skipped) == (0, 1)
        assert len(trio.host.rows()) == 1


@every_database
def test_after_a_backup_was_restored(trio: Trio) -> None:
    """What Credly has is in the ledger before anything is issued."""
    trio.issue("1")
    trio.completed["2"] = AT
    trio.host.complete("2", completed_at=AT)
    waiting = dict(action="issue", due_at=LONG_AGO, state="none", settled_at=None)
    trio.issue("3")
    # The backup was made before the badges of 2 and 3.
    nothing = dict.fromkeys(
        ("badge_id", "badge_state", "issued_at", "accept_url", "checked_at")
    )
    trio.write(Issuance.member_id == "2", **nothing, **waiting, attempts=0)
    forget(trio, "3")
    made = {each["id"] for each in trio.credly.badges}
    assert len(made) == 3
    trio.host.app.test_cli_runner().invoke(args=["credly", "restored"])

    assert trio.differing() == {"unknown_here": 1, "failed_here": 1}
    assert trio.repair("unknown_here", 1)["done"] == 1
    assert trio.repair("failed_here", 1)["done"] == 1
    assert trio.differing() == {}
    asked = trio.credly.count("look-up")
    trio.host.complete("2", completed_at=AT)
    trio.host.complete("3", completed_at=AT)
    trio.host.drain(2)
    assert trio.credly.count("look-up") == asked
    assert {row.badge_id for row in trio.host.rows()} == made
    assert {each["id"] for each in trio.credly.badges} == made


Damage = cabc.Callable[[Trio, str], None]


def damaged(trio: Trio, member_id: str, **values: t.Any) -> None:
    trio.write(Issuance.member_id == member_id, **values)


def delete_there(trio: Trio, member_id: str) -> None:
    trio.credly.delete_badge(trio.badge_of(member_id)["id"])


def delete_both(trio: Trio, member_id: str) -> None:
    delete_there(trio, member_id)
    forget(trio, member_id)


def fail_here(trio: Trio, member_id: str) -> None:
    damaged(trio, member_id, state="failed", badge_id=None, badge_state=None)


def accept_there(trio: Trio, member_id: str) -> None:
    trio.credly.accept(trio.badge_of(member_id)["id"])
    made_older(trio)


def revoke_there(trio: Trio, member_id: str) -> None:
    trio.credly.revoke_badge(trio.badge_of(member_id)["id"])
    made_older(trio)


def accept_here(trio: Trio, member_id: str) -> None:
    damaged(trio, member_id, badge_state="accepted", badge_state_at=AT)


def redate_here(trio: Trio, member_id: str) -> None:
    damaged(trio, member_id, issued_at=AT - dt.timedelta(days=9))


def uncomplete(trio: Trio, member_id: str) -> None:
    del trio.completed[member_id]


DAMAGES: dict[Damage, str] = {
    forget: "unknown_here",
    delete_both: "not_recorded",
    fail_here: "failed_here",
    accept_there: "state_differs",
    revoke_there: "state_differs",
    accept_here: "state_differs",
    delete_there: "not_at_credly",
    redate_here: "differs",
    uncomplete: "no_longer_completed",
}


def none(trio: Trio, member_id: str) -> None:
    pass


def check_damage(trio: Trio, damages: list[Damage]) -> None:
    """Damage one badge after the other. The report names just that; repaired, all of it
    that can be is gone, and a third run writes nothing.
    """
    trio.begin_anew()
    members = [str(number) for number in range(len(damages))]
    trio.issue(*members)

    for member_id, damage in zip(members, damages, strict=True):
        damage(trio, member_id)

    wanted = collections.Counter(DAMAGES[each] for each in damages if each in DAMAGES)
    assert trio.differing() == dict(wanted)

    for bucket in comparisons.REPAIRED:
        if wanted[bucket]:
            found = trio.repair(bucket, wanted.pop(bucket))
            assert found["skipped"] == found["no_course"] == found["left"] == 0

    assert trio.differing() == dict(+wanted)
    written: list[str] = []

    def note(_: object, __: object, statement: str, *rest: object) -> None:
        if not statement.startswith(("SELECT", "PRAGMA", "SET")):
            written.append(statement)

    engine = trio.host.state.engine
    sa.event.listen(engine, "before_cursor_execute", note)

    try:
        for bucket in comparisons.REPAIRED:
            assert trio.repair(bucket, 0)["done"] == 0

        assert trio.differing() == dict(+wanted)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)

    assert written == []
    trio.host.drain(2)
    trio.age()
    assert trio.differing() == dict(+wanted)


@pytest.mark.slow
@hypothesis.given(st.lists(st.sampled_from([none, *DAMAGES]), min_size=1, max_size=7))
@hypothesis.settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_any_damage_is_named_and_repaired(trio: Trio, damages: list[Damage]) -> None:
    check_damage(trio, damages)


@every_database
def test_every_damage_on_every_database(trio: Trio) -> None:
    check_damage(trio, [none, *DAMAGES, none])


def test_in_words(trio: Trio) -> None:
    trio.issue("1", "2")
    trio.completed["3"] = AT
    trio.write(Issuance.member_id == "2", badge_state="accepted")
    number = trio.row("2").id
    code, said = trio.run()
    assert code == 1
    assert f"badge {number}\n" in said
    assert "Completed, but not recorded here: 1\n    Python 101 (1)\n" in said
    assert "flask credly reconcile --repair not_recorded --confirm 1" in said
    assert "Badges that agree: 1" in said
    assert "@example.org" not in said and "Ada" not in said
    _, said = trio.run("--since", "2026-01-31")
    command = "reconcile --since 2026-01-31T00:00:00+00:00 --repair not_recorded"
    assert f"→ flask credly {command} --confirm 1" in said
    _, repaired = trio.run(*command.split()[1:], "--confirm", "1")
    assert repaired == "1 repaired.\n"


def test_what_is_suggested_names_the_community(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(
        make_host, credly, "north", past_completions=lambda *_: [(a_member(), AT)]
    )

    with site.host.app.app_context():
        said = site.run("reconcile", "--tenant", "north", exit_code=1)

    command = "reconcile --tenant north --repair not_recorded --confirm 1"
    assert f"→ flask credly {command}\n" in said
