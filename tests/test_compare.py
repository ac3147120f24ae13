"""Comparing with Credly in the background, and the page that shows what differs."""

from __future__ import annotations

import collections.abc as cabc
import csv
import dataclasses
import datetime as dt
import functools
import io
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import every_database
from conftest import MakeHost
from test_reconcile import AT
from test_reconcile import forget
from test_reconcile import Trio
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.issuing import compare
from flask_credly.issuing import periodic
from flask_credly.issuing import reconcile
from flask_credly.issuing import stopping
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import privacy
from flask_credly.ledger import retention
from flask_credly.ledger import runs
from flask_credly.ledger.transaction import in_session
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Base
from flask_credly.models import Batch
from flask_credly.models import DifferenceRow
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import WORKER
from tests.support.pages import Browser
from tests.support.pages import HX
from tests.support.pages import text_of
from tests.support.pages import WINDOW
from tests.support.sites import make_site

COMPARE = f"{WINDOW}/compare"
REPAIR = f"{COMPARE}/repair"


class Desk(Trio):
    """The three sides, with an admin at the page and a worker."""

    def __init__(self, make_host: MakeHost, credly: CredlySimulator, **given: t.Any):
        self.roles = {"admin": True, "viewer": False}
        self.meanwhile: cabc.Callable[[], object] = lambda: None
        super().__init__(
            make_host,
            credly,
            is_admin=lambda: self.roles["admin"],
            is_viewer=lambda: self.roles["viewer"],
            actor=lambda: "grace",
            **given,
        )

    def _past(self, course: t.Any, since: t.Any) -> t.Any:
        self.meanwhile()
        return super()._past(course, since)

    @functools.cached_property
    def browser(self) -> Browser:
        return Browser(self.host.app)

    def get(self, path: str = COMPARE, **given: t.Any) -> TestResponse:
        self.host.db.session.remove()
        return self.browser.get(path, **given)

    def text(self) -> str:
        return " ".join(text_of(self.get()).split())

    def press(self, path: str = COMPARE, **fields: str) -> TestResponse:
        self.host.db.session.remove()
        return self.browser.post(path, page=f"{WINDOW}/connection", **fields)

    def work(self) -> None:
        """Let a worker do what is due."""
        self.host.db.session.remove()
        jobs.compare()

    def look(self, **fields: str) -> None:
        """Compare."""
        assert self.press(**fields).location == COMPARE
        self.work()

    def repair_it(self, bucket: str, number: str) -> TestResponse:
        """Fill in the form that the page shows."""
        path = f"{REPAIR}?bucket={bucket}"
        hidden = re.findall(
            r'type="hidden" name="(run|shown)" value="([^"]*)"', self.get(path).text
        )
        return self.press(path, **{**dict(hidden), "number": number})

    def counts(self) -> dict[str, int]:
        """Read from the page how many differ, by the name it has for them."""
        rows = re.findall(
            r'<td data-label="Number">(\d+)</td>\s*<td data-label="Badges">(.*?)<p',
            self.get().text,
            re.DOTALL,
        )
        assert len(rows) in (0, 11)
        return {
            re.sub(r"<[^>]+>", "", name).strip(): int(number)
            for number, name in rows
            if int(number)
        }

    def read(self, query: sa.Select[t.Any]) -> list[t.Any]:
        self.host.db.session.rollback()
        found = list(self.host.db.session.scalars(query))
        self.host.db.session.expunge_all()
        return found

    def runs(self) -> list[str]:
        return self.read(
            sa.select(Batch.state).where(Batch.verb == "compare").order_by(Batch.id)
        )

    def stored(self) -> list[DifferenceRow]:
        return self.read(sa.select(DifferenceRow).order_by(DifferenceRow.id))

    def trail(self) -> list[tuple[str, str, str]]:
        actions = ("compare", "stop comparing", "repair", "export differences")
        found = self.read(
            sa.select(AuditEntry)
            .where(AuditEntry.action.in_(actions))
            .order_by(AuditEntry.id)
        )
        return [(each.actor, each.action, each.target) for each in found]

    def change(self, model: t.Any, *these: t.Any, **values: t.Any) -> None:
        session = self.host.db.session
        session.rollback()
        session.execute(sa.update(model).where(*these).values(**values))
        session.commit()


@pytest.fixture
def desk(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Desk]:
    made = Desk(make_host, credly)

    with made.host.app.app_context():
        yield t.cast(Desk, made.connect())


def damage(desk: Desk) -> None:
    """Let there be one of each that can be repaired, and one that agrees."""
    desk.issue("1", "2", "3", "4")
    forget(desk, "2")
    desk.write(Issuance.member_id == "3", state="failed", badge_id=None)
    desk.write(Issuance.member_id == "4", badge_state="accepted")
    desk.completed["5"] = AT


class TestComparing:
    def test_nothing_was_compared_yet(self, desk: Desk) -> None:
        assert "Not compared yet." in desk.text()
        assert 'aria-current="page">Compare</a>' in desk.get().text
        assert desk.get(f"{COMPARE}.csv").status_code == 303

    def test_without_a_connection(self, make_host: MakeHost) -> None:
        browser = Browser(make_host().app)

        for path in (COMPARE, f"{COMPARE}.csv", f"{REPAIR}?bucket=twice"):
            assert browser.get(path).status_code == 303

    @every_database
    def test_what_differs_is_found_and_repaired(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        assert desk.counts() == {
            "Matching": 1,
            "Completed without a badge": 1,
            "Only at Credly": 1,
            "Issued at Credly, but not here": 1,
            "Different status": 1,
        }
        assert "4 differences." in desk.text()

        for bucket in comparisons.REPAIRED:
            assert desk.repair_it(bucket, "1").location == COMPARE
            assert "Repairing 1 badge." in desk.text()
            desk.work()
            assert "1 badge repaired" in desk.text()
            assert 'class="credly-banner" data-kind="success"' in desk.get().text

        assert desk.stored() == []
        assert desk.counts() == {"Matching": 4}
        desk.host.drain()
        desk.age()
        desk.look()
        assert desk.counts() == {"Matching": 5}
        assert "No differences." in desk.text()
        assert desk.runs() == ["compared"]
        assert desk.trail() == [
            ("grace", "compare", ""),
            *(
                ("grace", "repair", f"{each.replace('_', ' ')}: 1")
                for each in comparisons.REPAIRED
            ),
            ("grace", "compare", ""),
        ]

    def test_the_page_while_it_goes_on(self, desk: Desk) -> None:
        desk.issue("1")
        desk.press()
        page = desk.get()
        assert "Comparing: 0 badges read at Credly so far." in text_of(page)
        assert 'hx-trigger="every 2s"' in page.text
        assert "Compare now" not in page.text
        part = desk.get(headers=HX)
        assert "<h1" not in part.text and "credly-results" not in part.text
        desk.work()
        part = desk.get(headers=HX)
        assert 'id="credly-results" hx-swap-oob="innerHTML"' in part.text
        assert "Finished." in part.text and "hx-trigger" not in part.text

    def test_two_clicks_begin_one(self, desk: Desk) -> None:
        desk.press()
        desk.press()
        assert desk.runs() == ["comparing"]
        assert desk.trail() == [("grace", "compare", "")]

    def test_only_what_was_completed_since(self, desk: Desk) -> None:
        desk.completed |= {"1": AT, "2": AT + dt.timedelta(days=9)}
        assert desk.press(since="soon").status_code == 422
        desk.look(since="2026-03-05")
        assert desk.counts() == {"Completed without a badge": 1}
        assert 'value="2026-03-05"' in desk.get().text
        # What comes by itself leaves out the same.
        comparisons.start(desk.host.state.engine, "default", weekly=True)
        desk.work()
        assert desk.counts() == {"Completed without a badge": 1}
        desk.look(since="")
        assert desk.counts() == {"Completed without a badge": 2}

    def test_many_are_kept_and_listed_up_to_a_number(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(comparisons, "AT_MOST", 4)
        monkeypatch.setattr("flask_credly.admin.compare.SHOWN", 2)
        desk.completed |= dict.fromkeys("1234567", AT)
        desk.look()
        assert desk.counts() == {"Completed without a badge": 7}
        assert len(desk.stored()) == 4
        assert "The first 2 of 7." in desk.text()
        rows = list(csv.DictReader(io.StringIO(desk.get(f"{COMPARE}.csv").text[1:])))
        assert len({row["Member"] for row in rows} & set("1234567")) == 4
        assert {row["Course id"] for row in rows} == {"py-101"}
        page = " ".join(text_of(desk.get(f"{REPAIR}?bucket=not_recorded")).split())
        assert "There are 7. At most 4 are repaired at once." in page
        desk.repair_it("not_recorded", "4")
        desk.work()
        assert desk.counts() == {"Completed without a badge": 3}
        assert len(desk.host.rows()) == 4

    def test_a_badge_links_to_its_page_and_names_its_member(self, desk: Desk) -> None:
        desk.issue("1")
        desk.write(badge_state="accepted")
        desk.look()
        page = desk.get().text
        assert f'href="{WINDOW}/badges/{desk.row("1").id}"' in page
        assert "Ada" in page and "member-1@example.org" not in page
        (row,) = csv.DictReader(io.StringIO(desk.get(f"{COMPARE}.csv").text[1:]))
        assert (row["E-mail address"], row["Difference"]) == (
            "member-1@example.org",
            "Different status",
        )
        assert desk.trail()[-1] == ("grace", "export differences", "")
        # Only ids, and nobody's data, is kept.
        assert "Ada" not in str([vars(each) for each in desk.stored()])


class TestInterrupted:
    def test_a_worker_that_dies_is_followed_by_one_that_begins_anew(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1", "2", "3")
        desk.credly.search_page_size = 1
        desk.press()

        class Killed(BaseException):
            pass

        def die(self: t.Any, badges: int) -> None:
            if badges == 2:
                raise Killed

            self._read = badges
            self._said_at = 0.0
            self.go_on()

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(compare._Progress, "note", die)
            desk.work()

        assert desk.runs() == ["comparing"]
        assert "Comparing: 1 badge read" in desk.text()
        # Nobody else has it as long as it may be alive.
        desk.work()
        assert desk.runs() == ["comparing"]
        desk.change(Batch, due_at=AT)
        desk.work()
        assert desk.runs() == ["compared"]
        assert desk.counts() == {"Matching": 3}

    def test_one_that_was_thought_dead_writes_nothing(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1")
        desk.press()
        was = compare._stored
        taken: list[t.Any] = []

        def late(each: t.Any) -> t.Any:
            desk.change(Batch, due_at=AT)
            taken.append(runs.take(desk.host.state.engine, "compare"))
            return was(each)

        monkeypatch.setattr(compare, "_stored", late)
        desk.write(badge_state="accepted")
        desk.work()
        assert taken != [None]
        assert desk.runs() == ["comparing"]
        assert desk.stored() == []

    def test_it_is_stopped(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        damage(desk)
        desk.look()
        desk.press()
        monkeypatch.setattr(compare, "SAY_EVERY", 0.0)
        (run_id,) = desk.read(sa.select(Batch.id).where(Batch.state == "comparing"))
        engine = desk.host.state.engine
        desk.meanwhile = lambda: comparisons.stop(engine, "default", run_id, by="grace")
        asked = desk.credly.count("search")
        desk.work()
        assert desk.credly.count("search") == asked + 1
        assert desk.runs() == ["compared", "stopped"]
        assert "The last comparison was stopped" in desk.text()
        # What was found before is there still.
        assert "4 differences." in desk.text()
        desk.press(f"{COMPARE}/{run_id}/stop")
        assert [each[1] for each in desk.trail()].count("stop comparing") == 1

    def test_the_button_stops_it_before_a_worker_comes(self, desk: Desk) -> None:
        desk.press()
        (run_id,) = desk.read(sa.select(Batch.id).where(Batch.verb == "compare"))
        assert f'action="{COMPARE}/{run_id}/stop"' in desk.get().text
        assert desk.press(f"{COMPARE}/{run_id}/stop").location == COMPARE
        desk.work()
        assert desk.runs() == ["stopped"]
        assert desk.credly.count("search") == 0

    def test_a_process_that_is_told_to_stop_leaves_it_to_the_next(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1")
        desk.press()
        was = compare._Progress.note

        def told(self: t.Any, badges: int) -> None:
            stopping.set()
            was(self, badges)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(compare._Progress, "note", told)
                desk.work()
        finally:
            stopping.clear()

        assert desk.runs() == ["comparing"]
        desk.work()
        assert desk.runs() == ["compared"]

    def test_remove_in_the_midst(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        damage(desk)
        desk.look()
        desk.press()
        desk.credly.search_page_size = 1
        monkeypatch.setattr(compare, "SAY_EVERY", 0.0)
        was = compare._Progress.note

        def note(self: t.Any, badges: int) -> None:
            accounts.remove(desk.host.state)
            was(self, badges)

        monkeypatch.setattr(compare._Progress, "note", note)
        asked = desk.credly.count("search")
        desk.work()
        assert desk.credly.count("search") == asked + 1
        assert (desk.runs(), desk.stored()) == ([], [])
        assert desk.get().status_code == 303

    def test_credly_fails_on_page_7_of_12(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue(*"123456789", "10", "11")
        desk.completed["12"] = AT
        desk.look()
        assert desk.counts() == {"Matching": 11, "Completed without a badge": 1}
        monkeypatch.setattr(reconcile, "TRIES", 1)
        desk.credly.search_page_size = 1
        desk.press()
        was = compare._Progress.note

        def note(self: t.Any, badges: int) -> None:
            if badges == 6:
                desk.credly.fail("search", how="reset")

            was(self, badges)

        monkeypatch.setattr(compare._Progress, "note", note)
        desk.work()
        said = desk.text()
        assert "The last comparison could not be read to the end" in said
        assert "Credly did not answer." in said and "6 pages were read." in said
        # What an earlier one has found stays, and says so.
        assert "The results below are of an earlier comparison." in said
        assert desk.counts() == {"Matching": 11, "Completed without a badge": 1}
        assert desk.runs() == ["compared", "partial"]
        (due_at,) = desk.read(sa.select(Account.compare_due_at))
        assert due_at < dt.datetime.now(dt.UTC) + dt.timedelta(days=1, minutes=1)
        monkeypatch.undo()
        desk.look()
        assert desk.runs() == ["compared"]

    def test_the_first_that_is_not_read_to_the_end_is_shown_and_repairs_nothing(
        self, desk: Desk
    ) -> None:
        damage(desk)
        desk.completed["9"] = t.cast(t.Any, "soon")
        desk.look()
        said = desk.text()
        assert "The @credly.past_completions hook failed." in said
        assert desk.runs() == ["partial"]
        assert desk.counts()["Different status"] == 1
        assert REPAIR not in desk.get().text
        page = desk.get(f"{REPAIR}?bucket=state_differs")
        assert (page.status_code, page.location) == (303, COMPARE)

    def test_what_nobody_has_foreseen_is_logged_and_shown(
        self,
        desk: Desk,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(*given: t.Any, **more: t.Any) -> t.Any:
            raise ZeroDivisionError

        monkeypatch.setattr(reconcile, "compare", fail)
        desk.look()
        assert desk.runs() == ["failed"]
        assert "The last comparison failed" in desk.text()
        (record,) = (each for each in caplog.records if each.levelname == "ERROR")
        assert vars(record)["credly_event"] == "reconcile_failed"

    def test_a_gate_that_is_closed(self, desk: Desk) -> None:
        desk.issue("1")
        gates.switch(desk.host.state.engine, "default", on=False)
        desk.look()
        assert desk.runs() == ["partial"]
        assert "Credly was not contacted." in desk.text()


class TestRepairing:
    def test_the_number_has_to_be_right(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        sent = desk.repair_it("state_differs", "2")
        assert sent.status_code == 422
        assert "Type the number of badges to repair." in sent.text
        assert desk.runs() == ["compared"]

    def test_a_number_that_has_changed_is_refused(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        path = f"{REPAIR}?bucket=not_recorded"
        hidden = dict(
            re.findall(r'name="(run|shown)" value="([^"]*)"', desk.get(path).text)
        )
        desk.completed["6"] = AT
        desk.look()
        sent = desk.press(path, **hidden, number="1")
        assert sent.status_code == 422
        assert "The number of badges has changed" in sent.text
        assert desk.runs() == ["compared"]
        # The same number, of another comparison, is none that was confirmed.
        del desk.completed["6"]
        desk.look()
        assert desk.press(path, **hidden, number="1").status_code == 422
        assert desk.repair_it("not_recorded", "1").status_code == 303

    def test_only_one_at_a_time(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        desk.repair_it("not_recorded", "1")
        assert desk.get(f"{REPAIR}?bucket=state_differs").location == COMPARE
        desk.press()
        assert desk.runs() == ["repairing"]
        desk.work()
        assert desk.runs() == ["compared"]

    @pytest.mark.parametrize("bucket", ["twice", "agreed", "nothing", ""])
    def test_what_has_no_one_right_answer(self, desk: Desk, bucket: str) -> None:
        damage(desk)
        desk.look()
        assert desk.get(f"{REPAIR}?bucket={bucket}").location == COMPARE
        sent = desk.press(f"{REPAIR}?bucket={bucket}", number="0", shown="0", run="1")
        assert sent.location == COMPARE
        assert desk.runs() == ["compared"]

    def test_what_has_changed_since_is_left_and_says_so(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        desk.repair_it("state_differs", "1")
        desk.write(Issuance.member_id == "4", badge_state="rejected")
        desk.work()
        said = desk.text()
        assert 'class="credly-banner" data-kind="warning"' in desk.get().text
        assert "0 badges repaired" in said and "Changed since the comparison" in said
        assert desk.row("4").badge_state == "rejected"
        assert "credly-repair-state_differs" not in desk.get().text

    def test_a_worker_that_dies_in_a_repair(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1", "2", "3")
        desk.write(badge_state="accepted")
        desk.look()
        desk.repair_it("state_differs", "3")

        class Killed(BaseException):
            pass

        was = comparisons.note_repaired

        def die(*given: t.Any) -> bool:
            was(*given)
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(comparisons, "note_repaired", die)
            desk.work()

        assert desk.runs() == ["repairing"]
        desk.change(Batch, due_at=AT)
        desk.work()
        assert desk.runs() == ["compared"]
        assert "3 badges repaired" in desk.text()
        assert {row.badge_state for row in desk.host.rows()} == {"pending"}

    def test_a_repair_is_stopped(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1", "2", "3")
        desk.write(badge_state="accepted")
        desk.look()
        desk.repair_it("state_differs", "3")
        (run_id,) = desk.read(sa.select(Batch.id).where(Batch.verb == "compare"))
        was = comparisons.note_repaired

        def stop(*given: t.Any) -> bool:
            comparisons.stop(desk.host.state.engine, "default", run_id)
            return was(*given)

        monkeypatch.setattr(comparisons, "note_repaired", stop)
        desk.work()
        assert desk.runs() == ["compared"]
        assert desk.counts() == {"Matching": 1, "Different status": 2}
        assert "1 badge repaired" in desk.text()

    def test_credly_does_not_answer(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        damage(desk)
        desk.look()
        monkeypatch.setattr(reconcile, "TRIES", 1)
        desk.repair_it("state_differs", "1")
        desk.credly.fail("badge", how="reset")
        desk.work()
        assert "Not all could be repaired. Credly did not answer." in desk.text()
        assert desk.repair_it("state_differs", "1").status_code == 303
        desk.work()
        assert "1 badge repaired" in desk.text()

    def test_a_course_that_is_not_mapped_any_more(self, desk: Desk) -> None:
        desk.completed["5"] = AT
        desk.look()
        (mapping,) = accounts.list_mappings(desk.host.db.session, "default")
        desk.repair_it("not_recorded", "1")
        accounts.remove_mapping(desk.host.state, mapping.id)
        desk.work()
        assert "Course unknown" in desk.text()


class TestWho:
    def test_a_viewer_looks_and_changes_nothing(self, desk: Desk) -> None:
        damage(desk)
        desk.completed["ada@example.org"] = AT
        desk.look()
        desk.roles |= {"admin": False, "viewer": True}
        page = desk.get()
        assert page.status_code == 200 and "5 differences." in text_of(page)
        assert "<form" not in page.text and REPAIR not in page.text
        assert "compare.csv" not in page.text
        # Of an address no more than elsewhere.
        assert "ada@example.org" not in page.text
        assert desk.get(f"{COMPARE}.csv").status_code == 403
        assert desk.get(f"{REPAIR}?bucket=not_recorded").status_code == 403
        desk.roles |= {"viewer": False}
        assert desk.get().status_code == 403

    def test_each_community_sees_its_own(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        def past(course: t.Any, since: t.Any, tenant: str) -> t.Any:
            yield a_member(f"of-{tenant}"), AT

        site = make_site(make_host, credly, "acme", "beta", past_completions=past)

        with site.host.app.app_context():
            acme, beta = site.visitor("acme"), site.visitor("beta")
            acme.post("/credly/compare")
            jobs.compare()
            assert "of-acme" in acme.get("/credly/compare").text
            page = beta.get("/credly/compare").text
            assert "of-acme" not in page and "Not compared yet." in page
            (run_id,) = site.host.db.session.scalars(
                sa.select(Batch.id).where(Batch.verb == "compare")
            )
            acme.post("/credly/compare")
            beta.post(f"/credly/compare/{run_id + 1}/stop")
            states = sa.select(Batch.state).order_by(Batch.id)
            site.host.db.session.rollback()
            assert list(site.host.db.session.scalars(states)) == [
                "compared",
                "comparing",
            ]
            beta.post("/credly/compare")
            jobs.compare()
            assert "of-beta" in beta.get("/credly/compare").text
            sent = beta.post(
                "/credly/compare/repair?bucket=not_recorded",
                run=str(run_id + 1),
                shown="1",
                number="1",
            )
            assert sent.status_code == 422


class TestPeople:
    @every_database
    def test_a_member_is_erased(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        engine = desk.host.state.engine
        assert len(desk.stored()) == 4

        # One of each: known by its row, by another row, and by the host's id alone.
        for member_id in ("4", "2", "5"):
            exported = privacy.export(engine, "default", member_id)
            assert len(exported["differences"]) == 1
            erased = privacy.erase(engine, "default", member_id)
            assert erased.deleted == 1
            assert privacy.export(engine, "default", member_id)["differences"] == []

        assert [each.bucket for each in desk.stored()] == ["failed_here"]
        # What is counted is listed, and nothing besides.
        assert desk.counts() == {"Matching": 1, "Issued at Credly, but not here": 1}
        assert "1 difference." in desk.text()
        assert "The first" not in desk.text()

    @every_database
    def test_a_member_who_is_erased_meanwhile_is_not_written_down(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither one of whom there is no row, nor one whose badge differs."""
        desk.issue("1", "2")
        first, second = (row.id for row in desk.host.rows())
        desk.write(badge_state="accepted")
        desk.completed |= {"5": AT, "6": AT}
        desk.press()
        was: t.Any = compare._stored
        read: list[str] = []

        def erase(each: t.Any) -> t.Any:
            if not read:
                del desk.completed["5"]
                desk.host.credly.erase_member("5")
                desk.host.credly.erase_member("1")

            read.append(each.member_id or f"row {each.row_id}")
            return was(each)

        monkeypatch.setattr(compare, "_stored", erase)
        desk.work()
        # It has not begun anew.
        assert sorted(read) == ["5", "6", f"row {first}", f"row {second}"]
        left = {each.member_id or each.issuance_id for each in desk.stored()}
        assert left == {"6", second}
        assert desk.counts() == {
            "Completed without a badge": 1,
            "Different status": 1,
        }

    @every_database
    def test_a_member_who_is_erased_during_a_repair_is_not_added(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Neither one whom the host knew, nor one whom another row knew."""
        desk = Desk(make_host, credly)

        with desk.host.app.app_context():
            desk.connect(allow_duplicate_badges=True)
            self._erase_during_a_repair(desk, monkeypatch)

    def _erase_during_a_repair(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.issue("1", "2", "3")
        desk.award("3", AT + dt.timedelta(days=1))
        forget(desk, "2")
        desk.look()
        assert desk.counts()["Only at Credly"] == 2
        desk.repair_it("unknown_here", "2")
        was: t.Any = reconcile._repair_one

        def erase(*given: t.Any) -> t.Any:
            for member_id in ("2", "3"):
                if desk.completed.pop(member_id, None):
                    desk.host.credly.erase_member(member_id)

            return was(*given)

        monkeypatch.setattr(reconcile, "_repair_one", erase)
        desk.work()
        assert desk.runs() == ["compared"]
        rows = desk.host.rows()
        assert len(rows) == 2
        assert {row.email for row in rows} == {"member-1@example.org", ""}
        assert desk.stored() == []

    @every_database
    def test_a_member_who_is_erased_during_a_repair_is_not_recorded(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.completed |= {"5": AT, "6": AT}
        desk.look()
        desk.repair_it("not_recorded", "2")
        was: t.Any = reconcile._never_there

        def erase(*given: t.Any) -> t.Any:
            found = was(*given)

            if desk.completed.pop("5", None):
                desk.host.credly.erase_member("5")

            return found

        monkeypatch.setattr(reconcile, "_never_there", erase)
        desk.work()
        assert [row.member_id for row in desk.host.rows()] == ["6"]
        assert desk.stored() == []
        assert desk.runs() == ["compared"]

    def test_nothing_is_kept_for_longer_than_a_month(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        engine, settings = desk.host.state.engine, desk.host.state.settings
        retention.prune(engine, settings)
        assert len(desk.stored()) == 4
        old = dt.datetime.now(dt.UTC) - dt.timedelta(days=31)
        desk.change(DifferenceRow, found_at=old)
        retention.prune(engine, settings)
        assert desk.stored() == []
        assert desk.get().status_code == 200

    def test_remove_leaves_nothing(self, desk: Desk) -> None:
        damage(desk)
        desk.look()
        accounts.remove(desk.host.state)
        assert (desk.stored(), desk.runs()) == ([], [])


class TestWeekly:
    def test_by_itself(self, desk: Desk) -> None:
        desk.issue("1")
        desk.work()
        assert desk.runs() == []
        desk.change(Account, surveyed_at=AT)
        before = dt.datetime.now(dt.UTC)
        desk.work()
        # The first has its time within a week.
        (due_at,) = desk.read(sa.select(Account.compare_due_at))
        assert before - dt.timedelta(minutes=1) < due_at
        assert due_at < before + comparisons.EVERY + dt.timedelta(minutes=1)
        assert desk.runs() == []
        desk.change(Account, compare_due_at=AT)
        desk.work()
        assert desk.runs() == ["compared"]
        (due_at,) = desk.read(sa.select(Account.compare_due_at))
        assert due_at > before + comparisons.EVERY - dt.timedelta(minutes=1)
        assert desk.trail() == []
        assert [each.healing for each in desk.read(sa.select(Batch))] == [True]

    def test_a_worker_that_sweeps_finds_it(self, desk: Desk) -> None:
        state = desk.host.state
        assert not periodic.COMPARE.is_due(state)
        desk.press()
        assert periodic.COMPARE.is_due(state)
        desk.work()
        assert not periodic.COMPARE.is_due(state)
        desk.change(Account, compare_due_at=AT)
        assert periodic.COMPARE.is_due(state)
        desk.work()
        assert not periodic.COMPARE.is_due(state)

    def test_not_where_nothing_can_be_asked(self, desk: Desk) -> None:
        desk.change(Account, compare_due_at=AT, switched_off=True)
        desk.work()
        assert desk.runs() == []

    def test_without_the_hook_the_others_are_compared(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        desk = Desk(make_host, credly)

        with desk.host.app.app_context():
            desk.connect()
            desk.issue("1")
            extensions = desk.host.app.extensions
            extensions["credly"] = dataclasses.replace(
                extensions["credly"], past_completions=None
            )
            desk.write(badge_state="accepted")
            desk.change(Account, compare_due_at=AT)
            desk.work()
            assert desk.counts() == {"Different status": 1}
            said = desk.text()
            assert "does not say who completed what" in said
            assert "Only completions since" not in said

    def test_only_the_last_is_kept(self, desk: Desk) -> None:
        damage(desk)

        for _ in range(3):
            desk.change(Account, compare_due_at=AT)
            desk.work()

        assert desk.runs() == ["compared"]
        assert len(desk.stored()) == 4


def test_the_tables_say_whose_a_row_is() -> None:
    assert "tenant" in Base.metadata.tables["credly_difference"].columns


@pytest.mark.slow
def test_a_worker_in_a_process_of_its_own_compares(farm: Farm) -> None:
    farm.host.complete()
    farm.run(*WORKER, "--burst")
    comparisons.start(farm.host.state.engine, "default")
    # Nobody has told it: it sweeps.
    farm.run(*WORKER, "--burst")
    known = in_session(farm.host.state.engine, comparisons.known, "default")
    assert known.shown is not None and known.found is not None
    assert known.shown.state == "compared"
    # It was issued a moment ago.
    assert known.found.counts["agreed"] + known.found.moving == 1
    assert known.found.number == 0
