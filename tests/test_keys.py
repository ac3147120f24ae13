"""Keys: rotated without a pause, lost and found again, with the secret never lost."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import typing as t

import pytest
import sqlalchemy as sa
from click.testing import Result
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost
from cryptography.fernet import Fernet

from flask_credly import accounts
from flask_credly import keys
from flask_credly.accounts import rotating
from flask_credly.ledger import gates
from flask_credly.models import Account
from flask_credly.testing import CredlySimulator

OLD, NEW, *MORE = (Fernet.generate_key().decode() for _ in range(6))


def run(host: Host, *arguments: str) -> Result:
    return host.app.test_cli_runner().invoke(args=["credly", *arguments])


def set_keys(host: Host, *given: str) -> None:
    host.app.config["CREDLY_ENCRYPTION_KEYS"] = list(given) or None


def stored(host: Host) -> dict[str, str | None]:
    """The sealed values as they are in the database."""
    with host.state.engine.connect() as connected:
        row = connected.execute(sa.select(Account.client_secret, Account.token)).one()

    return row._asdict()


def opened_by(host: Host, *given: str) -> set[str]:
    """What these keys alone open."""
    config = {"CREDLY_ENCRYPTION_KEYS": list(given)}
    organization_id = accounts.get(host.db.session, "default").organization_id  # type: ignore[union-attr]
    host.db.session.rollback()
    return {
        field
        for field, sealed in stored(host).items()
        if sealed and keys.opens(config, sealed, organization_id, field)
    }


def issue(host: Host, credly: CredlySimulator, member_id: str) -> None:
    """Issue one badge with a token that this process has to fetch."""
    credly.revoke_tokens()
    before = len(credly.badges)

    with host.app.app_context():
        host.complete(member_id)
        host.drain()

    assert len(credly.badges) == before + 1


class TestRotating:
    @pytest.fixture
    def host(self, make_host: MakeHost) -> Host:
        return make_host(CREDLY_ENCRYPTION_KEYS=[OLD])

    @every_database
    def test_everything_stored_is_encrypted_with_the_newest_key(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        set_keys(host, NEW, OLD)
        done = run(host, "rotate-keys")

        assert done.exit_code == 0
        assert done.output == (
            "2 encrypted with the newest key, 0 already current, 0 unreadable.\n"
        )
        assert opened_by(host, NEW) == {"client_secret", "token"}
        assert opened_by(host, OLD) == set()

        set_keys(host, NEW)
        issue(host, credly, "1")

    def test_a_second_time_changes_nothing(self, connected: Connected) -> None:
        host, _, _ = connected
        before = stored(host)
        done = run(host, "rotate-keys")

        assert done.exit_code == 0
        assert done.output.startswith(
            "0 encrypted with the newest key, 2 already current"
        )
        assert stored(host) == before

    def test_a_dry_run_changes_nothing(self, connected: Connected) -> None:
        host, _, _ = connected
        before = stored(host)
        set_keys(host, NEW, OLD)
        done = run(host, "rotate-keys", "--dry-run")

        assert done.exit_code == 0
        assert done.output.startswith("2 to be encrypted with the newest key, 0")
        assert stored(host) == before

    @pytest.mark.parametrize("field", ["client_secret", "token"])
    def test_nothing_is_changed_where_one_value_is_unreadable(
        self, connected: Connected, field: str
    ) -> None:
        host, _, _ = connected
        host.db.session.execute(
            sa.update(Account).values({field: Fernet(MORE[0]).encrypt(b"{}")})
        )
        host.db.session.commit()
        before = stored(host)
        set_keys(host, NEW, OLD)
        done = run(host, "rotate-keys")

        assert done.exit_code == 1
        assert "1 to be encrypted" in done.output
        assert "1 unreadable" in done.output
        assert "to the end of CREDLY_ENCRYPTION_KEYS" in done.output
        assert "enter the Client Secret again" in done.output
        assert stored(host) == before

    def test_a_value_that_was_moved_is_unreadable(self, connected: Connected) -> None:
        host, _, _ = connected
        host.db.session.execute(sa.update(Account).values(client_secret=Account.token))
        host.db.session.commit()

        assert run(host, "rotate-keys").exit_code == 1

    def test_where_nothing_is_stored_there_is_nothing_to_do(self, host: Host) -> None:
        done = run(host, "rotate-keys")

        assert (done.exit_code, done.output[:2]) == (0, "0 ")

    def test_without_any_key_it_says_what_to_set(self, make_host: MakeHost) -> None:
        done = run(make_host(SECRET_KEY=None), "rotate-keys")

        assert done.exit_code == 1
        assert "CREDLY_ENCRYPTION_KEYS" in done.output

    def test_no_key_and_no_secret_is_printed(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        with host.app.app_context():
            connect(host, credly)
            set_keys(host, NEW)
            said = run(host, "rotate-keys").output

        assert not [each for each in (OLD, NEW, credly.client_secret) if each in said]


@pytest.mark.slow
def test_keys_are_rotated_while_old_and_new_processes_run(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """The documented order, with a process of the step before beside each new one."""
    old, beside = (make_host(CREDLY_ENCRYPTION_KEYS=[OLD]) for _ in range(2))
    numbers = itertools.count()

    def both_issue() -> None:
        # Each fetches a token that the other has to live with, twice.
        for host in (old, beside) * 2:
            issue(host, credly, str(next(numbers)))

    with old.app.app_context():
        connect(old, credly)

    for given in ([OLD, NEW], [NEW, OLD]):
        set_keys(beside, *given)
        both_issue()
        set_keys(old, *given)

    assert run(beside, "rotate-keys").exit_code == 0
    both_issue()

    set_keys(beside, NEW)
    both_issue()

    set_keys(old, NEW)
    both_issue()

    with old.app.app_context():
        assert opened_by(old, OLD) == set()
        assert gates.read(old.state.engine, "default").is_open  # type: ignore[union-attr]
        assert old.log() == []


def test_a_process_with_the_old_key_only_goes_on_until_the_keys_are_rotated(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    old = make_host(CREDLY_ENCRYPTION_KEYS=[OLD])

    with old.app.app_context():
        connect(old, credly)

    new = make_host(CREDLY_ENCRYPTION_KEYS=[NEW, OLD])

    for number in range(4):
        issue((new, old)[number % 2], credly, str(number))

    # A token of the other's, that is still good, is no lost key either.
    for number in range(4, 6):
        for host in (new, old):
            with host.app.app_context():
                host.complete(f"{number}{host is new}")
                host.drain()

    assert len(credly.badges) == 8


def test_from_the_derived_key_to_a_key_of_its_own(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """Nobody has to enter the secret again, and SECRET_KEY may change afterwards."""
    old = make_host()

    with old.app.app_context():
        connect(old, credly)

    new = make_host(CREDLY_ENCRYPTION_KEYS=[NEW])

    for number in range(4):
        issue((new, old)[number % 2], credly, str(number))

    assert run(new, "rotate-keys").output.startswith("2 encrypted")
    new.app.config["SECRET_KEY"] = "another"
    issue(new, credly, "4")


def test_a_changed_secret_key_is_rotated_too(connected: Connected) -> None:
    host, credly, _ = connected
    host.app.config.update(
        SECRET_KEY="another", SECRET_KEY_FALLBACKS=["a key for tests"]
    )
    assert run(host, "rotate-keys").output.startswith("2 encrypted")

    host.app.config["SECRET_KEY_FALLBACKS"] = None
    issue(host, credly, "1")


SEQUENCES = [
    steps
    for length in range(5)
    for steps in itertools.product(("add", "rotate", "drop"), repeat=length)
]


@pytest.mark.slow
@pytest.mark.parametrize("first", [[OLD], []], ids=["own key", "derived key"])
def test_no_sequence_of_keys_loses_a_readable_secret(
    make_connected: MakeConnected, first: list[str]
) -> None:
    """Every sequence of up to four steps. A key that is dropped too early makes the
    secret unreadable, changes nothing of it, and opens it again when it is back.
    """
    host, _, _ = make_connected(CREDLY_ENCRYPTION_KEYS=first or None)
    begin = stored(host)

    for steps in SEQUENCES:
        follow(host, begin, first, steps)


def follow(
    host: Host, begin: dict[str, t.Any], first: list[str], steps: tuple[str, ...]
) -> None:
    with host.state.engine.begin() as connected:
        connected.execute(sa.update(Account).values(begin))

    both = {"client_secret", "token"}
    given, fresh, dropped = list(first), iter([NEW, *MORE]), list[str]()
    sealed_with = first[0] if first else "derived"
    set_keys(host, *given)

    for step in steps:
        if step == "add":
            given.insert(0, next(fresh))
        elif step == "drop" and len(given) > 1:
            dropped.append(given.pop())

        set_keys(host, *given)
        readable = sealed_with in given or sealed_with == "derived"
        before = stored(host)

        if step == "rotate":
            assert (run(host, "rotate-keys").exit_code == 0) is readable, steps

            if readable and given:
                sealed_with = given[0]

        if step != "rotate" or not readable:
            assert stored(host) == before, steps

        assert rotating.rotate_keys(host.state, dry_run=True).unreadable == (
            () if readable else ("Client Secret", "access token")
        ), steps

    set_keys(host, *given, *dropped)
    assert run(host, "rotate-keys").exit_code == 0, steps

    if given:
        assert opened_by(host, given[0]) == both, steps
        assert not any(opened_by(host, key) for key in dropped), steps


class TestALostKey:
    @pytest.fixture
    def lost(self, connected: Connected) -> Connected:
        connected.host.complete()
        connected.host.app.config["SECRET_KEY"] = "another"
        return connected

    @every_database
    def test_nothing_is_asked_and_everything_waits_for_a_reconnect(
        self, lost: Connected
    ) -> None:
        host, credly, _ = lost
        asked = len(credly.received)
        host.complete("43")
        host.drain(times=3)

        assert len(credly.received) == asked
        assert [row.state for row in host.rows()] == ["none", "none"]
        assert {row.attempts for row in host.rows()} == {0}
        assert host.log() == [
            (
                "Wrong encryption key",
                "A worker cannot decrypt the stored Client Secret. SECRET_KEY may"
                " have changed, or CREDLY_ENCRYPTION_KEYS may be missing. Restore"
                " it, or add the previous SECRET_KEY to SECRET_KEY_FALLBACKS.",
            )
        ]

        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )
        host.drain()

        assert [row.state for row in host.rows()] == ["issued", "issued"]
        assert len(accounts.list_mappings(host.db.session, "default")) == 1

    def test_the_entry_is_solved_by_a_reconnect(self, lost: Connected) -> None:
        host, credly, _ = lost
        client = host.app.test_client()
        host.drain()

        assert "Resolved" not in client.get("/integrations/credly").text

        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )

        # As a request does that has a session of its own.
        host.db.session.remove()
        assert "Resolved" in client.get("/integrations/credly").text

    def test_the_entry_is_solved_when_no_worker_lacks_the_key_any_more(
        self, lost: Connected
    ) -> None:
        host, _, _ = lost
        client = host.app.test_client()
        host.drain(times=3)
        host.app.config["SECRET_KEY"] = "a key for tests"
        page = client.get("/integrations/credly").text

        assert "A worker has a wrong encryption key" in page
        assert "Resolved" not in page
        assert len(host.log()) == 1

        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        host.db.session.execute(sa.update(Account).values(keyless_until=past))
        host.db.session.commit()
        host.drain()
        host.db.session.remove()
        page = client.get("/integrations/credly").text

        assert "A worker has a wrong encryption key" not in page
        assert "Resolved" in page
        assert host.row().state == "issued"
        host.app.config["SECRET_KEY"] = "another"
        host.complete("43")
        host.drain()
        assert len(host.log()) == 2

    def test_the_doctor_names_the_setting(self, lost: Connected) -> None:
        host, _, _ = lost
        host.drain()
        said = run(host, "doctor").output

        assert "add the previous SECRET_KEY to SECRET_KEY_FALLBACKS" in said
        assert "end of CREDLY_ENCRYPTION_KEYS" not in said

        host.app.config["CREDLY_ENCRYPTION_KEYS"] = NEW
        assert "end of CREDLY_ENCRYPTION_KEYS" in run(host, "doctor").output

        del host.app.config["CREDLY_ENCRYPTION_KEYS"]
        host.app.config["SECRET_KEY_FALLBACKS"] = ["a key for tests"]
        said = run(host, "doctor").output
        assert "A worker cannot decrypt the stored Client Secret" in said
        assert "Restart that worker" in said

    def test_it_is_said_before_a_worker_finds_out(self, lost: Connected) -> None:
        host, credly, _ = lost
        found = json.loads(run(host, "status", "--json").output)
        synced = run(host, "sync")
        page = host.app.test_client().get("/integrations/credly")
        card = host.app.test_client().get("/integrations/")

        assert found["connection"] == "expired"
        assert synced.exit_code == 1
        assert (
            "Run flask credly doctor to see which setting to correct." in synced.output
        )
        assert "enter the Client Secret again." in page.text
        assert "Connection expired" not in page.text + card.text
        assert "Encryption key missing" in card.text

    def test_a_token_that_still_opens_does_not_hide_it(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_ENCRYPTION_KEYS=[OLD])
        set_keys(host, NEW, OLD)
        issue(host, credly, "1")
        assert opened_by(host, NEW) == {"token"}

        set_keys(host, NEW)
        asked = len(credly.received)
        host.complete("2")
        host.drain()

        assert len(credly.received) == asked
        assert host.rows()[-1].state == "none"

    def test_a_key_that_comes_back_needs_no_secret(self, lost: Connected) -> None:
        host, credly, _ = lost
        host.drain()
        host.app.config["SECRET_KEY"] = "a key for tests"
        host.drain()

        assert host.row().state == "issued"

    def test_no_key_at_all_is_the_same(self, lost: Connected) -> None:
        host, credly, _ = lost
        host.app.config["SECRET_KEY"] = None
        asked = len(credly.received)
        host.drain()

        assert len(credly.received) == asked
        assert host.row().state == "none"
        assert '"expired"' in run(host, "status", "--json").output
