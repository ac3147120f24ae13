"""What became of a badge: how it is read, and how it is written down."""

from __future__ import annotations

import datetime as dt
import itertools
import typing as t

import pytest
import sqlalchemy as sa
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import in_threads

from flask_credly import accounts
from flask_credly import links
from flask_credly.credly import Badge
from flask_credly.credly.badge import read
from flask_credly.ledger.transaction import in_transaction
from flask_credly.ledger.transitions import lifecycle
from flask_credly.ledger.transitions import removal
from flask_credly.ledger.transitions.lifecycle import follows
from flask_credly.ledger.transitions.lifecycle import Learned
from flask_credly.models import Issuance

ID = "99999999-8888-4777-8666-555555555555"
OTHER = "99999999-8888-4777-8666-444444444444"
NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def shown(**more: t.Any) -> dict[str, t.Any]:
    return {"id": ID, "state": "pending", **more}


class TestReading:
    def test_all_that_is_kept_of_a_badge(self) -> None:
        assert read(
            shown(
                id=ID.upper(),
                state="accepted",
                state_updated_at="2026-11-01T12:00:00.000Z",
                badge_url=f"https://www.credly.com/badges/{ID}",
                accept_badge_url=f"https://www.credly.com/go/{ID}",
                expires_at="2027-11-01 00:00:00 -0500",
                public=True,
                replacement_badge_id=OTHER.upper(),
                badge_template={"id": OTHER},
            )
        ) == Badge(
            id=ID,
            state="accepted",
            template_id=OTHER,
            state_at=NOON,
            page_url=f"https://www.credly.com/badges/{ID}",
            accept_url=f"https://www.credly.com/go/{ID}",
            expires_at=dt.datetime(2027, 11, 1, 5, tzinfo=dt.UTC),
            public=True,
            replaced_by=OTHER,
            says_expiry=True,
        )

    @pytest.mark.parametrize(
        "value",
        [None, 1, [], {}, "x", "", True, "9999-99-99", "0001-01-01", "2026-11-01T25"],
    )
    def test_what_cannot_be_used_is_left_out(self, value: object) -> None:
        keys = (
            *("state_updated_at", "badge_url", "accept_badge_url", "expires_at"),
            *("replacement_badge_id", "badge_template"),
        )
        assert read(shown(**dict.fromkeys(keys, value))) == Badge(ID, says_expiry=True)

    @pytest.mark.parametrize(
        "row",
        [
            None,
            [],
            {},
            {"id": ID},
            {"id": "1", "state": "pending"},
            {"id": ID, "state": "expired"},
            {"id": ID, "state": ["pending"]},
        ],
    )
    def test_no_badge(self, row: object) -> None:
        assert read(row) is None

    @pytest.mark.parametrize(
        "link",
        [
            "https://credly.com/x",
            "https://www.credly.com/badges/1/accept?a=b#c",
            "https://sandbox.credly.com/x",
            "https://WWW.CREDLY.COM/x",
            "https://www.credly.com",
        ],
    )
    def test_a_link_to_credly(self, link: str) -> None:
        assert links.read_link(link) == link

    @pytest.mark.parametrize(
        "link",
        [
            "http://www.credly.com/x",
            "javascript:alert(1)",
            "//www.credly.com/x",
            "https://credly.com.example.org/x",
            "https://notcredly.com/x",
            "https://www.credly.com@example.org/x",
            "https://example.org\\@www.credly.com/x",
            "https://www.credly.com\\.example.org/",
            "https://example.org/https://www.credly.com",
            "https://example.org#www.credly.com",
            "https://[::1].credly.com/",
            "https://www.credly.com/a b",
            "https://www.credly.com/\n",
            'https://www.credly.com/"',
            "https://www.credly.com/" + "x" * 500,
        ],
    )
    def test_a_link_elsewhere(self, link: str) -> None:
        assert links.read_link(link) in (None, link) and (
            links.read_link(link) is None or '"' in link
        )

    def test_what_stands_in_credlys_place_may_link_to_itself(self) -> None:
        host = links.own_host("https://credly.example.org:8443/v1")
        link = "https://credly.example.org:8443/badges/1"
        assert host == "credly.example.org"
        assert links.read_link(link, host) == link
        assert links.read_link("https://www.credly.com/x", host)
        assert links.read_link("https://a.credly.example.org/x", host) is None

    def test_credly_itself_is_no_other(self) -> None:
        assert links.own_host("https://api.credly.com/v1") is None
        assert links.own_host("https://sandbox-api.credly.com/v1") is None


STATES = ("pending", "accepted", "rejected", "revoked")
TIMES = (None, NOON, NOON + HOUR)
SAID = [
    (state, at) for state in STATES for at in ((None,) if state == "pending" else TIMES)
]


class TestOrder:
    @pytest.mark.parametrize(
        ("known", "later"),
        [
            ("pending", "accepted"),
            ("pending", "rejected"),
            ("pending", "revoked"),
            ("accepted", "rejected"),
            ("accepted", "revoked"),
            ("rejected", "revoked"),
        ],
    )
    def test_a_life(self, known: str, later: str) -> None:
        assert follows(later, None, known, None)
        assert not follows(known, None, later, None)

    def test_anything_is_more_than_nothing(self) -> None:
        assert all(follows(state, at, None, None) for state, at in SAID)

    def test_the_same_is_nothing_new(self) -> None:
        assert not any(follows(*said, *said) for said in SAID)

    def test_pending_is_an_old_answer(self) -> None:
        assert not follows("pending", NOON + HOUR, "accepted", NOON)

    def test_what_was_declined_may_be_accepted_later(self) -> None:
        assert follows("accepted", NOON + HOUR, "rejected", NOON)
        assert not follows("accepted", NOON, "rejected", NOON + HOUR)

    def test_a_revocation_stays(self) -> None:
        assert not any(follows(*said, "revoked", NOON) for said in SAID)

    def test_of_two_one_at_most_follows_the_other(self) -> None:
        for one, two in itertools.product(SAID, SAID):
            assert not (follows(*one, *two) and follows(*two, *one))


@in_transaction
def learn(
    connection: sa.Connection,
    host: Host,
    *badges: Badge,
    tenant: str = "default",
    organization_id: str = "",
    read_at: dt.datetime | None = None,
) -> Learned:
    organization_id = organization_id or connection.scalar(
        sa.select(Issuance.organization_id).limit(1)
    )
    read_at = read_at or dt.datetime.now(dt.UTC)
    return lifecycle.learn(connection, tenant, organization_id, badges, read_at=read_at)


def known(host: Host) -> tuple[str, str | None, dt.datetime | None]:
    row = host.row()
    return row.state, row.badge_state, row.badge_state_at


class TestIssued:
    def test_what_the_answer_says_is_kept(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        host.drain()
        assert known(host) == ("issued", "pending", None)
        assert host.row().checked_at is not None
        assert host.row().public is False
        assert host.row().accept_url == (
            f"https://www.credly.com/badges/{host.row().badge_id}/accept"
        )

    def test_what_is_found_as_revoked_is_revoked(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", after=True, status=500)
        credly.fail("look-up", status=500)
        host.complete()
        host.drain()
        credly.revoke_badge(credly.badges[0]["id"])
        host.make_due()
        host.drain()
        assert known(host)[:2] == ("revoked", "revoked")


@every_database
class TestLearning:
    def issue(self, connected: Connected, member_id: str = "42") -> Badge:
        host, credly, template_id = connected
        host.complete(member_id)
        host.drain()
        return Badge(credly.badges[-1]["id"], template_id=template_id)

    @pytest.mark.slow
    def test_in_every_order_it_ends_in_the_same(self, connected: Connected) -> None:
        host = connected.host
        badge = self.issue(connected)
        life = [
            ("pending", None),
            ("accepted", NOON),
            ("rejected", NOON + HOUR),
            ("revoked", NOON + 2 * HOUR),
        ]

        for number in range(1, len(life) + 1):
            for order in itertools.permutations(life[:number]):
                forget(host)

                for state, at in order:
                    learn(host.state.engine, host, said(badge, state, at))

                is_revoked = number == len(life)
                assert known(host) == (
                    "revoked" if is_revoked else "issued",
                    *life[number - 1],
                )

    def test_the_same_writes_nothing_but_when_it_was_read(
        self, connected: Connected
    ) -> None:
        host = connected.host
        badge = said(self.issue(connected), "accepted", NOON)
        engine = host.state.engine
        assert learn(engine, host, badge).changed == 1
        before = as_dict(host.row())
        later = dt.datetime.now(dt.UTC) + HOUR
        assert learn(engine, host, badge, read_at=later).changed == 0
        assert as_dict(host.row()) == before | {"checked_at": later}

    def test_an_older_reading_changes_no_detail(self, connected: Connected) -> None:
        host = connected.host
        badge = self.issue(connected)
        engine = host.state.engine
        new, old = dt.datetime.now(dt.UTC) + HOUR, dt.datetime.now(dt.UTC)
        shared = said(badge, "accepted", NOON, public=True)
        learn(engine, host, shared, read_at=new)
        learn(engine, host, said(badge, "accepted", NOON, public=False), read_at=old)
        assert host.row().public is True
        assert host.row().checked_at == new

    def test_a_list_that_says_less_takes_nothing_away(
        self, connected: Connected
    ) -> None:
        host = connected.host
        badge = self.issue(connected)
        engine = host.state.engine
        learn(engine, host, said(badge, "pending", accept_url="https://credly.com/a"))
        learn(engine, host, said(badge, "pending"))
        assert host.row().accept_url == "https://credly.com/a"
        learn(engine, host, said(badge, "accepted", page_url="https://credly.com/b"))
        assert (host.row().accept_url, host.row().page_url) == (
            None,
            "https://credly.com/b",
        )
        learn(engine, host, said(badge, "revoked"))
        assert host.row().page_url is None

    def test_a_revoked_badge_is_never_issued_again(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge = said(self.issue(connected), "revoked", NOON)
        learn(host.state.engine, host, badge)
        host.complete()
        host.drain()
        assert len(credly.badges) == 1
        assert (host.row().state, host.row().action) == ("revoked", None)

    @pytest.mark.parametrize("what", ["tenant", "organization", "template", "id"])
    def test_what_is_not_ours(self, connected: Connected, what: str) -> None:
        host = connected.host
        badge = said(self.issue(connected), "accepted", NOON)
        before = as_dict(host.row())
        given: dict[str, t.Any] = {}

        if what == "tenant":
            given["tenant"] = "other"
        elif what == "organization":
            given["organization_id"] = OTHER
        else:
            name = "template_id" if what == "template" else "id"
            badge = badge._replace(**{name: OTHER})

        found = learn(host.state.engine, host, badge, **given)
        assert (found.changed, found.to_tell) == (0, ())
        assert found.mismatched == (what == "template")
        assert as_dict(host.row()) == before

    def test_nothing_is_kept_of_an_erased_member(self, connected: Connected) -> None:
        host = connected.host
        badge = self.issue(connected)
        learn(host.state.engine, host, said(badge, "accepted", NOON, public=True))
        host.credly.erase_member("42")
        host.db.session.commit()
        row = as_dict(host.row())
        assert {row[name] for name in removal.NO_BADGE} == {None}
        learn(host.state.engine, host, said(badge, "revoked", NOON))
        assert as_dict(host.row()) == row
        assert host.row().state == "issued"

    def test_two_at_once_end_in_the_later(self, connected: Connected) -> None:
        host = connected.host
        badge = self.issue(connected)

        def hear(state: str, at: dt.datetime) -> None:
            with host.app.app_context():
                learn(host.state.engine, host, said(badge, state, at))

        for _ in range(5):
            forget(host)
            in_threads(
                lambda: hear("accepted", NOON), lambda: hear("rejected", NOON + HOUR)
            )
            assert known(host) == ("issued", "rejected", NOON + HOUR)

    def test_remove_and_another_organization_between(
        self, connected: Connected
    ) -> None:
        host = connected.host
        badge = self.issue(connected)
        accounts.remove(host.state)
        found = learn(
            host.state.engine, host, said(badge, "revoked"), organization_id=OTHER
        )
        assert found == Learned()
        assert host.row().state == "issued"


def said(
    badge: Badge, state: str, at: dt.datetime | None = None, **more: t.Any
) -> Badge:
    return Badge(badge.id, state, template_id=badge.template_id, state_at=at, **more)


def forget(host: Host) -> None:
    """Know nothing of what became of the badges."""
    host.db.session.execute(
        sa.update(Issuance).values(
            state="issued", badge_state="pending", badge_state_at=None, badge_told=None
        )
    )
    host.db.session.commit()


def as_dict(row: Issuance) -> dict[str, t.Any]:
    return {name: getattr(row, name) for name in Issuance.__table__.columns.keys()}
