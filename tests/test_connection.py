"""Connecting, badge templates, mappings, removing."""

from __future__ import annotations

import concurrent.futures as cf
import contextvars
import json
import typing as t

import pytest
import responses
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import Course
from flask_credly import keys
from flask_credly.errors import ConnectionExpired
from flask_credly.errors import CredlyError
from flask_credly.errors import SecretUnreadable
from flask_credly.models import Account
from flask_credly.models import Base
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator

OTHER_ORGANIZATION = "11111111-2222-4333-8444-555555555555"


def try_to_connect(
    host: Host, credly: CredlySimulator, **changes: str
) -> accounts.Connected:
    return accounts.connect(
        host.state,
        **{
            "organization_id": credly.organization_id,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
            **changes,
        },
    )


def nothing_is_saved(host: Host) -> bool:
    host.db.session.rollback()
    return not any(
        host.db.session.scalar(sa.select(sa.func.count()).select_from(table))
        for table in Base.metadata.sorted_tables
    )


class TestConnect:
    def test_credentials_are_saved_and_sealed(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        try_to_connect(host, credly)
        row = accounts.get(host.db.session, "default")

        assert row is not None
        assert (row.organization_id, row.client_id) == (
            credly.organization_id,
            credly.client_id,
        )
        stored = host.db.session.execute(sa.text("SELECT * FROM credly_account"))
        assert credly.client_secret not in str(stored.all())

    @pytest.mark.parametrize(
        "changes",
        [
            {"client_secret": "wrong"},
            {"client_id": "wrong"},
            {"organization_id": OTHER_ORGANIZATION},
        ],
        ids=["secret", "id", "organization"],
    )
    def test_refused_credentials_leave_nothing(
        self,
        host: Host,
        credly: CredlySimulator,
        in_context: None,
        changes: dict[str, str],
    ) -> None:
        with pytest.raises(accounts.NotVerified):
            try_to_connect(host, credly, **changes)

        assert nothing_is_saved(host)

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_every_refusal_of_the_organization_is_one(
        self, host: Host, credly: CredlySimulator, in_context: None, status: int
    ) -> None:
        credly.organization_mismatch_status = status

        with pytest.raises(accounts.NotVerified):
            try_to_connect(host, credly, organization_id=OTHER_ORGANIZATION)

    @pytest.mark.parametrize("kind", ["token", "templates"])
    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 500},
            {"status": 429},
            {"status": 200, "body": "<html>"},
            # Of a firewall, a proxy, a network that wants a login.
            {"status": 400, "body": "<html>", "times": 2},
            {"status": 401, "body": "<html>", "times": 2},
            {"status": 403, "body": "<html>", "times": 2},
            {"status": 403, "body": {"message": "Forbidden"}, "times": 2},
            {"status": 404, "body": "", "times": 2},
            {"status": 302, "headers": {"Location": "https://login.example"}},
            {"how": "hang"},
            {"how": "reset"},
        ],
        ids=str,
    )
    def test_trouble_is_not_blamed_on_the_credentials(
        self,
        host: Host,
        credly: CredlySimulator,
        in_context: None,
        kind: t.Any,
        fault: dict[str, t.Any],
    ) -> None:
        credly.fail(kind, **fault)

        with pytest.raises(accounts.CouldNotVerify):
            try_to_connect(host, credly)

        assert nothing_is_saved(host)

    def test_an_application_without_the_scopes_is_refused(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        credly.granted_scopes = ("badge_templates",)

        with pytest.raises(accounts.NotVerified):
            try_to_connect(host, credly)

    def test_without_a_key_nothing_is_asked(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        host = make_host(SECRET_KEY=None)

        with host.app.app_context(), pytest.raises(accounts.NoKey):
            try_to_connect(host, credly)

        assert credly.received == []

    def test_a_reconnect_keeps_the_mappings(self, connected: Connected) -> None:
        host, credly, _ = connected
        try_to_connect(host, credly, client_secret=credly.new_secret())

        assert len(accounts.list_mappings(host.db.session, "default")) == 1

    def test_a_failed_reconnect_leaves_the_old_connection(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected

        with pytest.raises(accounts.NotVerified):
            try_to_connect(host, credly, client_secret="wrong")

        host.complete()
        host.drain()

        assert host.row().state == "issued"

    def test_another_organization_needs_remove_first(
        self, connected: Connected
    ) -> None:
        with pytest.raises(accounts.OtherOrganization):
            try_to_connect(
                connected.host, connected.credly, organization_id=OTHER_ORGANIZATION
            )

    def test_an_organization_id_in_capitals_is_the_same(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        try_to_connect(host, credly, organization_id=credly.organization_id.upper())

        assert len(accounts.list_mappings(host.db.session, "default")) == 1

    def test_the_stored_credentials_can_be_checked(self, connected: Connected) -> None:
        host, credly, _ = connected
        accounts.check(host.state)
        credly.revoke_client()

        with pytest.raises(accounts.NotVerified):
            accounts.check(host.state)

        credly.restore_client()
        credly.fail("templates", status=503)

        with pytest.raises(accounts.CouldNotVerify):
            accounts.check(host.state)

    def test_nothing_can_be_checked_without_a_connection(
        self, host: Host, in_context: None
    ) -> None:
        with pytest.raises(accounts.NotConnected):
            accounts.check(host.state)


class TestKeys:
    KEYS = (
        "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
        "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=",
    )

    def test_an_older_key_still_opens(self) -> None:
        sealed = keys.seal({"CREDLY_ENCRYPTION_KEYS": self.KEYS[:1]}, "s", "c", "token")
        config = {"CREDLY_ENCRYPTION_KEYS": f"{self.KEYS[1]},{self.KEYS[0]}"}

        assert keys.unseal(config, sealed, "c", "token") == "s"

    def test_a_fallback_of_the_secret_key_still_opens(self) -> None:
        sealed = keys.seal({"SECRET_KEY": "old"}, "s", "c", "token")
        config = {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": ["old"]}

        assert keys.unseal(config, sealed, "c", "token") == "s"

    def test_another_key_does_not(self) -> None:
        sealed = keys.seal({"SECRET_KEY": "old"}, "s", "c", "token")

        with pytest.raises(SecretUnreadable, match="cannot be decrypted"):
            keys.unseal({"SECRET_KEY": "new"}, sealed, "c", "token")

    def test_ciphertext_swap(self) -> None:
        """What was moved to another place does not open there."""
        sealed = keys.seal({"SECRET_KEY": "k"}, "s", "here", "token")

        with pytest.raises(SecretUnreadable, match="cannot be decrypted"):
            keys.unseal({"SECRET_KEY": "k"}, sealed, "there", "token")


class TestTemplates:
    @every_database
    def test_all_pages_of_active_ones_are_loaded(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        for number in range(120):
            credly.add_template(f"Badge {number:03}")

        credly.add_template("Old", state="archived")
        credly.add_template("New", state="draft", image=False)

        with host.app.app_context():
            found = try_to_connect(host, credly)
            names = [
                row.name for row in accounts.list_templates(host.db.session, "default")
            ]

        assert (found.templates, found.complete) == (120, True)
        assert names == [f"Badge {number:03}" for number in range(120)]

    def test_a_long_list_is_finished_in_the_background(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        for number in range(320):
            credly.add_template(f"Badge {number:03}")

        found = try_to_connect(host, credly)

        assert (found.templates, found.complete) == (250, False)
        assert accounts.sync_templates(host.state) == 320

    def test_one_that_is_gone_is_marked_and_its_mapping_kept(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        credly.change_template(template_id, state="archived")
        accounts.sync_templates(host.state)
        (mapping,) = accounts.list_mappings(host.db.session, "default")

        assert not mapping.template.active
        assert accounts.list_templates(host.db.session, "default") == []

        credly.change_template(template_id, state="active", name="Renamed")
        accounts.sync_templates(host.state)
        host.db.session.rollback()
        (template,) = accounts.list_templates(host.db.session, "default")

        assert template.name == "Renamed"

    def test_half_a_list_marks_nothing(self, connected: Connected) -> None:
        host, credly, template_id = connected

        for number in range(60):
            credly.add_template(f"A {number}")

        credly.change_template(template_id, name="Z")
        credly.fail("templates", times=None, status=500, share=1.0)

        with pytest.raises(CredlyError):
            accounts.sync_templates(host.state)

        assert len(accounts.list_templates(host.db.session, "default")) == 1

    def test_a_sync_with_revoked_credentials_says_so(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("templates", times=None, status=401)

        with pytest.raises(ConnectionExpired):
            accounts.sync_templates(host.state)

        assert [error for error, _ in host.log()] == ["Connection expired"]

    @pytest.mark.parametrize("kind", ["templates", "token"])
    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_page_of_a_firewall_says_nothing_of_the_credentials(
        self, connected: Connected, kind: t.Any, status: int
    ) -> None:
        host, credly, _ = connected
        credly.revoke_tokens()
        credly.fail(kind, times=None, status=status, body="<html>No entry</html>")

        with pytest.raises(CredlyError) as caught:
            accounts.sync_templates(host.state)

        assert not isinstance(caught.value, ConnectionExpired)

        with pytest.raises(accounts.CouldNotVerify, match=f"HTTP {status}"):
            accounts.check(host.state)

        assert host.log() == []
        credly.clear_faults()
        accounts.check(host.state)
        accounts.sync_templates(host.state)

    def test_so_does_one_that_gets_no_token(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.revoke_tokens()
        credly.revoke_client()

        with pytest.raises(ConnectionExpired):
            accounts.sync_templates(host.state)

        assert [error for error, _ in host.log()] == ["Connection expired"]
        assert accounts.get(host.db.session, "default").expired

    def test_a_sync_without_a_connection_does_nothing(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        assert accounts.sync_templates(host.state) == 0
        assert credly.received == []


class TestMappings:
    def test_one_template_serves_many_courses(self, connected: Connected) -> None:
        host, _, template_id = connected
        accounts.add_mapping(host.state, COURSES[1], template_id)
        accounts.add_mapping(host.state, COURSES[2], template_id)

        assert len(accounts.list_mappings(host.db.session, "default")) == 3

    def test_a_course_has_one_badge(self, connected: Connected) -> None:
        host, _, template_id = connected

        with pytest.raises(accounts.AlreadyMapped) as caught:
            accounts.add_mapping(host.state, COURSES[0], template_id)

        assert caught.value.badge_name == "Python Badge"

    def test_a_change_cannot_take_anothers_course(self, connected: Connected) -> None:
        host, _, template_id = connected
        other = accounts.add_mapping(host.state, COURSES[1], template_id)

        with pytest.raises(accounts.AlreadyMapped):
            accounts.change_mapping(host.state, other.id, COURSES[0], template_id)

        assert len(accounts.list_mappings(host.db.session, "default")) == 2

    def test_only_an_active_template_can_be_mapped(self, connected: Connected) -> None:
        host, credly, template_id = connected

        with pytest.raises(accounts.UnknownTemplate):
            accounts.add_mapping(host.state, COURSES[1], OTHER_ORGANIZATION)

        credly.change_template(template_id, state="archived")
        accounts.sync_templates(host.state)
        host.db.session.rollback()

        with pytest.raises(accounts.UnknownTemplate):
            accounts.add_mapping(host.state, COURSES[1], template_id)

    def test_nothing_can_be_mapped_without_a_connection(
        self, connected: Connected
    ) -> None:
        host, _, template_id = connected
        accounts.remove(host.state)
        host.db.session.rollback()

        with pytest.raises(accounts.NotConnected):
            accounts.add_mapping(host.state, COURSES[0], template_id)

    def test_a_removed_mapping_cannot_be_changed(self, connected: Connected) -> None:
        host, _, template_id = connected
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        removed = accounts.remove_mapping(host.state, mapping.id)

        assert removed is not None
        assert removed.course_title == "Python 101"
        assert accounts.remove_mapping(host.state, removed.id) is None

        with pytest.raises(accounts.UnknownMapping):
            accounts.change_mapping(host.state, removed.id, COURSES[0], template_id)

    @every_database
    def test_two_admins_at_once_make_one_mapping(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        with host.app.app_context():
            template_id = connect(host, credly).template_id

        def add(_: int) -> bool:
            with host.app.app_context():
                try:
                    accounts.add_mapping(host.state, COURSES[1], template_id)
                except accounts.AlreadyMapped:
                    return False

                return True

        with cf.ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(add, range(4))) == 1


class TestRemove:
    @every_database
    def test_everything_that_was_configured_goes(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete("1")
        host.drain()
        credly.fail("issue", times=2, status=422)
        host.complete("2")
        host.drain()
        assert host.log() != []

        assert accounts.remove(host.state)

        host.db.session.rollback()
        left = {
            table.name: host.db.session.scalar(
                sa.select(sa.func.count()).select_from(table)
            )
            for table in Base.metadata.sorted_tables
        }
        kept = {
            t.cast(sa.Table, model.__table__).name for model in (Issuance, Installation)
        } | {"credly_attempt"}

        assert {name for name, number in left.items() if number} == kept
        assert {row.email + row.first_name for row in host.rows()} == {""}

    def test_a_second_time_does_no_harm(self, connected: Connected) -> None:
        assert accounts.remove(connected.host.state)
        assert not accounts.remove(connected.host.state)

    def test_another_organization_can_be_connected_then(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        accounts.remove(host.state)
        other = CredlySimulator(organization_id=OTHER_ORGANIZATION)
        other.add_template("Other")

        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            other.register(mock)
            try_to_connect(host, other)

        host.db.session.rollback()
        row = accounts.get(host.db.session, "default")

        assert row is not None
        assert row.organization_id == OTHER_ORGANIZATION
        assert [template.name for template in host.db.session.query(Template)] == [
            "Other"
        ]

    def test_a_worker_in_flight_writes_down_what_it_did(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The badge is made: the ledger must know, or a reconnect makes another."""
        host, credly, _ = connected
        host.complete()
        from flask_credly.credly import Client

        issue = Client.issue

        def issue_then_remove(self: Client, token: str, badge: t.Any) -> t.Any:
            made = issue(self, token, badge)

            with host.app.app_context():
                accounts.remove(host.state)

            return made

        with monkeypatch.context() as patched:
            patched.setattr(Client, "issue", issue_then_remove)
            host.drain()

        assert (host.row().state, host.row().email) == ("issued", "")
        assert [each.answer for each in host.attempts()] == ["issued"]
        assert host.db.session.query(Account).all() == []

    def test_a_failure_in_flight_leaves_no_log_behind(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=429)
        host.complete()
        from flask_credly.credly import Client

        issue = Client.issue

        def remove_then_issue(self: Client, token: str, badge: t.Any) -> t.Any:
            with host.app.app_context():
                accounts.remove(host.state)

            return issue(self, token, badge)

        with monkeypatch.context() as patched:
            patched.setattr(Client, "issue", remove_then_issue)
            host.drain()

        assert host.log() == []


HOSTILE = "\x00\ud800\x1b[31m\u202egnp.\u2066"
"""What no database takes, or no page should show."""


@every_database
class TestOutsideText:
    def list_again(self, connected: Connected, **changes: t.Any) -> None:
        host, credly, template_id = connected
        body = {
            "data": [
                {
                    "id": template_id,
                    "name": "Python Badge",
                    "state": "active",
                    **changes,
                }
            ],
            "metadata": {"total_pages": 1},
        }
        # As JSON may hold it: half of a pair is no text.
        credly.fail("templates", status=200, body=json.dumps(body))
        accounts.sync_templates(host.state)

    @pytest.mark.parametrize("times", [2, 3])
    def test_a_badge_template_that_is_listed_twice_is_one(
        self, host: Host, credly: CredlySimulator, in_context: None, times: int
    ) -> None:
        row = {"id": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "name": "Python"}
        rows = [row, {**row, "id": row["id"].upper()}, row][:times]
        body = {"data": rows, "metadata": {"total_pages": 1}}
        credly.fail("templates", status=200, body=body)
        connected = try_to_connect(host, credly)

        assert (connected.templates, connected.complete) == (1, True)
        (found,) = accounts.list_templates(host.db.session, "default")
        assert (found.id, found.name) == (row["id"], "Python")

    def test_so_is_one_on_two_pages(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        row = {"id": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "name": "Python"}
        body = {"data": [row], "metadata": {"total_pages": 3}}
        credly.fail("templates", times=3, status=200, body=body)

        assert try_to_connect(host, credly).templates == 1

    @pytest.mark.parametrize("place", ["name", "image_url"])
    def test_what_no_database_takes_is_left_out(
        self, connected: Connected, place: str
    ) -> None:
        host = connected.host
        value = f"https://images.credly.com/{HOSTILE}x.png"
        self.list_again(connected, **{place: value})
        (found,) = accounts.list_templates(host.db.session, "default")

        if place == "name":
            assert found.name.startswith("https://images.credly.com/")
            assert not set(HOSTILE) - set("[31mgnp.") & set(found.name)
        else:
            assert (found.name, found.image_url) == ("Python Badge", None)

    @pytest.mark.parametrize("name", ["", HOSTILE[:2], None, 7, "x" * 5000, "é" * 255])
    def test_a_name_of_any_kind_fits(self, connected: Connected, name: t.Any) -> None:
        host, _, template_id = connected
        self.list_again(connected, name=name)
        (found,) = accounts.list_templates(host.db.session, "default")

        if isinstance(name, str) and len(name) > 3:
            assert len(found.name) == 255
        else:
            assert found.name == template_id

    def test_an_error_of_credlys_can_be_kept(self, connected: Connected) -> None:
        host, credly, _ = connected
        body = json.dumps({"data": {"message": f"No {HOSTILE} badge"}})
        credly.fail("issue", times=2, status=422, body=body)
        host.complete()
        host.drain(times=3)

        assert host.row().state == "failed"
        assert "\x00" not in host.log()[0][1]
        assert "badge" in host.log()[0][1]

    def test_a_course_title_of_the_hosts_fits(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        courses = [
            Course("py-101", f"Python {HOSTILE} 101"),
            Course("sql", HOSTILE[:2]),
            Course("x", "x" * 5000),
        ]
        host = make_host(courses=lambda: courses)

        with host.app.app_context():
            _, _, template_id = connect(host, credly)

            for course in courses[1:]:
                accounts.add_mapping(host.state, course, template_id)

            accounts.change_mapping(host.state, 1, courses[0], template_id)
            assert host.app.test_client().get("/integrations/credly").status_code == 200

        assert courses[1].title == "sql"
        assert courses[2].title == "x" * 500


@every_database
class TestAnAnswerThatComesAfterAnotherConnection:
    """What was asked of one organization says nothing about the next."""

    @pytest.fixture
    def other(self) -> CredlySimulator:
        other = CredlySimulator(organization_id=OTHER_ORGANIZATION)
        other.add_template("Other")
        return other

    def change_during(
        self,
        monkeypatch: pytest.MonkeyPatch,
        host: Host,
        other: CredlySimulator,
        name: str,
        times: int = 1,
    ) -> None:
        """Remove and connect to another organization while Credly answers."""
        from flask_credly.credly import Client

        ask = getattr(Client, name)
        calls = []

        def change() -> None:
            # A badge is asked for by a thread without one.
            with host.app.app_context():
                accounts.remove(host.state)

                with responses.RequestsMock() as mock:
                    mock.assert_all_requests_are_fired = False
                    other.register(mock)
                    try_to_connect(host, other)

        def slow(self: Client, *args: t.Any, **given: t.Any) -> t.Any:
            calls.append(1)

            try:
                return ask(self, *args, **given)
            finally:
                if len(calls) == times:
                    # The request's time is not that of what is asked here.
                    contextvars.Context().run(change)

        monkeypatch.setattr(Client, name, slow)

    def state(self, host: Host) -> tuple[t.Any, ...]:
        host.db.session.rollback()
        row = accounts.get(host.db.session, "default")
        assert row is not None
        return (
            row.organization_id,
            row.expired,
            row.templates_failed_at,
            [each.name for each in accounts.list_templates(host.db.session, "default")],
            host.log(),
        )

    UNTOUCHED: tuple[t.Any, ...] = (OTHER_ORGANIZATION, False, None, ["Other"], [])

    @pytest.mark.parametrize("times", [1, 2])
    def test_no_template_of_one_is_offered_for_the_other(
        self,
        connected: Connected,
        other: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
        times: int,
    ) -> None:
        host, credly, _ = connected

        for number in range(60):
            credly.add_template(f"Template {number:02}")

        self.change_during(monkeypatch, host, other, "templates", times)

        with pytest.raises(CredlyError, match="The connection has changed"):
            accounts.sync_templates(host.state)

        assert self.state(host) == self.UNTOUCHED

    @pytest.mark.parametrize("fault", [{"status": 503}, {"how": "reset"}])
    def test_the_others_list_is_not_said_to_have_failed(
        self,
        connected: Connected,
        other: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
        fault: dict[str, t.Any],
    ) -> None:
        host, credly, _ = connected
        credly.fail("templates", **fault)
        self.change_during(monkeypatch, host, other, "templates")

        with pytest.raises(CredlyError):
            accounts.sync_templates(host.state)

        assert self.state(host) == self.UNTOUCHED

    @pytest.mark.parametrize("ask", [accounts.sync_templates, accounts.check])
    def test_the_others_credentials_have_not_expired(
        self,
        connected: Connected,
        other: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
        ask: t.Any,
    ) -> None:
        host, credly, _ = connected
        credly.fail("templates", times=None, status=401)
        self.change_during(monkeypatch, host, other, "templates", 2)

        with pytest.raises(CredlyError):
            ask(host.state)

        assert self.state(host) == self.UNTOUCHED

    @pytest.mark.parametrize("status", [422, 401, 429, 403])
    def test_no_failure_of_one_is_in_the_others_log(
        self,
        connected: Connected,
        other: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
        status: int,
    ) -> None:
        host, credly, _ = connected
        host.complete()
        body = "<html>" if status == 403 else {"data": {"message": "No."}}
        credly.fail("issue", times=None, status=status, body=body)
        self.change_during(monkeypatch, host, other, "issue")
        host.drain()
        row = host.row()

        assert self.state(host) == self.UNTOUCHED
        assert (row.state, row.email) == ("failed", "")

    def test_a_last_refusal_is_in_no_log_either(
        self,
        connected: Connected,
        other: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        host, credly, _ = connected
        host.complete()
        body = {"data": {"message": "No."}}
        credly.fail("issue", times=None, status=422, body=body)
        self.change_during(monkeypatch, host, other, "issue", 2)
        host.drain(times=3)

        assert self.state(host) == self.UNTOUCHED
        assert host.row().reason == "removed"
