"""What a member sees of the badges."""

from __future__ import annotations

import dataclasses
import datetime as dt
import html.parser
import pathlib
import re
import typing as t
import urllib.parse
import uuid

import jinja2
import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost
from flask import Flask
from flask import render_template
from flask import render_template_string
from flask_sqlalchemy import SQLAlchemy
from test_threats import PAYLOADS
from test_threats import Tree

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly import Course
from flask_credly.issuing.poll import poll_now
from flask_credly.ledger import actions
from flask_credly.ledger.member import MemberBadge
from flask_credly.ledger.member import MemberStatus
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support.surface import statements

Changes = dict[str, t.Any]

NOON = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)


def statuses(host: Host, member_id: str = "42", **given: t.Any) -> list[str]:
    host.db.session.rollback()
    return [each.status for each in host.credly.badges_of(member_id, **given)]


def the_badge(host: Host, **given: t.Any) -> MemberBadge:
    host.db.session.rollback()
    (badge,) = host.credly.badges_of("42", **given)
    return badge


def issue(host: Host, **given: t.Any) -> None:
    host.complete(**given)
    host.drain()


def change(host: Host, **values: t.Any) -> None:
    """Write into the ledger what Credly or a mishap would."""
    host.db.session.execute(sa.update(Issuance).values(**values))
    host.db.session.commit()


def shown(host: Host, template: str = '{{ credly_badges("42") }}') -> str:
    with host.app.test_request_context():
        return render_template_string(template)


def text_of(html_: str) -> str:
    found: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Reader().feed(html_)
    return " ".join("".join(found).split())


def links_in(html_: str) -> list[str]:
    found: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: t.Any) -> None:
            if tag == "a":
                found.append(dict(attributes)["href"])

    Reader().feed(html_)
    return found


# The life of a badge


@every_database
def test_a_badge_from_the_course_to_the_profile(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    connect(host, credly)
    can_be_earned = the_badge(host)

    assert can_be_earned == MemberBadge(
        name="Python Badge",
        image_url=can_be_earned.image_url,
        status="can_be_earned",
        course_id="py-101",
        kind="course",
    )
    assert str(can_be_earned.image_url).startswith("https://images.credly.com/")

    host.complete(completed_at=NOON)
    assert the_badge(host) == dataclasses.replace(can_be_earned, status="on_its_way")

    host.drain()
    (issued,) = credly.badges
    page = f"https://www.credly.com/badges/{issued['id']}"
    waiting = dataclasses.replace(
        can_be_earned,
        status="waiting",
        issued_on=NOON.date(),
        accept_url=f"{page}/accept",
    )
    assert the_badge(host) == waiting

    credly.accept(issued["id"])
    poll_now(host.state)
    earned = the_badge(host)
    assert dataclasses.replace(earned, linkedin_url=None) == dataclasses.replace(
        waiting, status="earned", accept_url=None, page_url=page
    )

    credly.revoke_badge(issued["id"])
    poll_now(host.state)
    assert the_badge(host) == dataclasses.replace(
        waiting, status="no_longer_valid", accept_url=None
    )


def test_what_the_profile_at_linkedin_is_told(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host(CREDLY_PLATFORM_NAME="Gradual & Söhne")

    with host.app.app_context():
        connect(host, credly)
        issue(host, completed_at=NOON)
        change(
            host,
            badge_name='C++ & "Rust" #1',
            badge_state="accepted",
            public=True,
            page_url="https://www.credly.com/badges/1?a=b&c=d",
            expires_at=dt.datetime(2099, 12, 31, tzinfo=dt.UTC),
        )
        badge = the_badge(host)
        badge_id = host.row().badge_id

    url = urllib.parse.urlsplit(badge.linkedin_url or "")
    assert (url.scheme, url.netloc, url.path) == (
        *("https", "www.linkedin.com"),
        "/profile/add",
    )
    assert dict(urllib.parse.parse_qsl(url.query, strict_parsing=True)) == {
        "startTask": "CERTIFICATION_NAME",
        "name": 'C++ & "Rust" #1',
        "organizationName": "Gradual & Söhne",
        "issueYear": "2026",
        "issueMonth": "3",
        "expirationYear": "2099",
        "expirationMonth": "12",
        "certUrl": "https://www.credly.com/badges/1?a=b&c=d",
        "certId": badge_id,
    }
    assert "+" not in url.query and "/" not in url.query


PAGE = "https://www.credly.com/badges/1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("waiting", True, False, False)),
        ({"badge_state": None}, ("waiting", True, False, False)),
        ({"badge_state": "accepted"}, ("earned", False, True, True)),
        (
            {"badge_state": "accepted", "public": False},
            ("earned", False, True, False),
        ),
        ({"badge_state": "accepted", "public": None}, ("earned", False, True, True)),
        ({"badge_state": "rejected"}, ("declined", False, False, False)),
        ({"badge_state": "revoked"}, ("no_longer_valid", False, False, False)),
        ({"state": "revoked"}, ("no_longer_valid", False, False, False)),
        ({"state": "replaced"}, ("no_longer_valid", False, False, False)),
        ({"missing_at": NOON}, ("no_longer_valid", False, False, False)),
        ({"expires_at": NOON}, ("expired", False, True, False)),
        (
            {"badge_state": "accepted", "expires_at": NOON},
            ("expired", False, True, False),
        ),
        ({"badge_state": "rejected", "expires_at": NOON}, ("declined", *[False] * 3)),
        (
            {"state": "held", "badge_state": "accepted"},
            ("earned", False, True, True),
        ),
        # Credly has refused it, as the member has it, and says no more.
        (
            {
                **{"state": "held", "badge_state": None, "badge_id": None},
                **{"accept_url": None, "page_url": None},
            },
            ("earned", False, False, False),
        ),
        ({"state": "failed", "error": "Refused."}, ("on_its_way", *[False] * 3)),
    ],
)
def test_what_a_badge_is_to_its_member(
    connected: Connected, changes: Changes, expected: tuple[object, ...]
) -> None:
    host = connected.host
    issue(host)
    given = {"accept_url": f"{PAGE}/accept", "page_url": PAGE, "public": True}
    change(host, **{**given, **changes})
    badge = the_badge(host)
    links = (badge.accept_url, badge.page_url, badge.linkedin_url)

    assert (badge.status, *(link is not None for link in links)) == expected


def test_a_badge_that_failed_is_on_its_way_and_says_no_reason(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    credly.fail("issue", times=2, status=422, body={"data": {"message": "Secret."}})
    host.complete()
    host.drain(2)

    assert host.row().state == "failed"
    assert statuses(host) == ["on_its_way"]
    assert "Secret" not in shown(host) and "fail" not in shown(host).lower()


# What counts


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("unmapped", ["can_be_earned"]),
        ("stopped", ["can_be_earned"]),
        ("withdrawn", ["can_be_earned"]),
        # No further completion brings it back.
        ("dropped", []),
    ],
)
def test_what_was_taken_back_before_it_was_sent(
    connected: Connected, reason: str, expected: list[str]
) -> None:
    host = connected.host
    host.complete()
    change(host, state="cancelled", action=None, due_at=None, reason=reason)

    assert statuses(host) == expected


def test_an_admin_drops_a_badge_and_a_host_withdraws_a_completion(
    connected: Connected,
) -> None:
    host = connected.host
    host.complete("42")
    row_id = host.row().id
    actions.revoke(host.state.engine, "default", row_id, reason="No.", tell=False)
    host.complete("7")
    completion_withdrawn.send(host.app, member_id="7", course_id="py-101")

    assert statuses(host, "42") == []
    assert statuses(host, "7") == ["can_be_earned"]


def open_cycle(host: Host, **changes: t.Any) -> None:
    """Add the next row of the same member and course."""
    rows = host.rows()
    values = {
        **{
            column.key: getattr(rows[-1], column.key)
            for column in Issuance.__table__.columns
        },
        **{"id": None, "badge_id": None, "cycle": len(rows) + 1},
        **{"accept_url": None, "page_url": None, "badge_state": None},
        **changes,
    }
    values.pop("id")
    host.db.session.execute(sa.insert(Issuance), [values])
    host.db.session.commit()


def badge_like(state: str = "pending") -> Changes:
    return {"state": "issued", "badge_id": str(uuid.uuid4()), "badge_state": state}


ON_ITS_WAY: Changes = {"state": "none", "action": "issue"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Each completion gives a badge: both are the member's.
        ({"badge_state": "accepted"}, badge_like(), ["waiting", "earned"]),
        ({"badge_state": "accepted"}, ON_ITS_WAY, ["on_its_way", "earned"]),
        (
            {"badge_state": "accepted"},
            badge_like("rejected"),
            ["declined", "earned"],
        ),
        # It is renewed or corrected: what is in force counts until it is replaced.
        (
            {"badge_state": "accepted"},
            {**ON_ITS_WAY, "renewal": True},
            ["earned"],
        ),
        (
            {"badge_state": "accepted"},
            {"state": "failed", "replaces": str(uuid.uuid4())},
            ["earned"],
        ),
        ({"state": "replaced"}, badge_like("accepted"), ["earned"]),
        ({"expires_at": NOON}, {**ON_ITS_WAY, "renewal": True}, ["on_its_way"]),
        # It is revoked and issued again.
        (
            {"badge_state": "accepted"},
            {**ON_ITS_WAY, "reason": "awaits revocation"},
            ["earned"],
        ),
        (
            {"badge_state": "accepted"},
            {"state": "cancelled", "reason": "not revoked"},
            ["earned"],
        ),
        ({"state": "revoked"}, ON_ITS_WAY, ["on_its_way"]),
        ({"state": "revoked"}, badge_like(), ["waiting"]),
        ({"state": "revoked"}, badge_like("rejected"), ["declined"]),
        ({"state": "revoked"}, {"state": "failed"}, ["on_its_way"]),
        # Credly has refused a second one, as the member has the first.
        (
            {"badge_state": "accepted"},
            {"state": "held"},
            ["earned"],
        ),
    ],
)
def test_of_the_badges_for_one_course_those_are_shown_that_count(
    connected: Connected, first: Changes, second: Changes, expected: list[str]
) -> None:
    host = connected.host
    issue(host)
    change(host, **first)
    open_cycle(host, **second)

    assert statuses(host) == expected


def test_a_badge_that_is_corrected_is_one(connected: Connected) -> None:
    host, credly, template_id = connected
    issue(host, completed_at=NOON)
    actions.correct(
        host.state.engine,
        "default",
        host.row().id,
        first_name="Ada",
        last_name="Lovelace",
        completed_at=NOON - YEAR,
        template_id=template_id,
    )
    assert statuses(host) == ["waiting"]

    host.drain()
    poll_now(host.state)
    assert the_badge(host).issued_on == (NOON - YEAR).date()


def test_a_test_badge_is_nobodys(connected: Connected) -> None:
    host = connected.host
    issue(host)
    change(host, test=True)

    assert statuses(host) == ["can_be_earned"]


def test_an_erased_member_has_none(connected: Connected) -> None:
    host = connected.host
    issue(host)
    host.credly.erase_member("42")

    assert statuses(host) == ["can_be_earned"]
    assert statuses(host, host.row().member_id) == ["can_be_earned"]


def test_after_a_removal_there_is_what_stands(connected: Connected) -> None:
    host, credly, _ = connected
    issue(host)
    credly.accept(credly.badges[0]["id"])
    poll_now(host.state)
    accounts.add_mapping(host.state, COURSES[1], connected.template_id)
    host.complete(course_id="sql")
    assert statuses(host) == ["on_its_way", "earned"]

    accounts.remove(host.state)
    badge = the_badge(host)
    assert (badge.status, badge.image_url) == ("earned", None)
    assert badge.page_url == f"https://www.credly.com/badges/{credly.badges[0]['id']}"


def test_while_issuing_is_paused_it_is_on_its_way(connected: Connected) -> None:
    host = connected.host
    host.complete()
    host.db.session.execute(sa.update(Account).values(switched_off=True, expired=True))
    host.db.session.commit()

    assert statuses(host) == ["on_its_way"]


def test_what_another_organization_did_not_issue_is_not_on_its_way(
    connected: Connected,
) -> None:
    host = connected.host
    host.complete()
    change(host, organization_id=str(uuid.uuid4()))

    assert statuses(host) == ["can_be_earned"]


def test_what_credly_does_not_issue_any_more_cannot_be_earned(
    connected: Connected,
) -> None:
    host, credly, template_id = connected
    credly.change_template(template_id, state="archived")
    accounts.sync_templates(host.state)

    assert statuses(host) == []


# Which are wanted


def test_one_course_and_no_other(connected: Connected) -> None:
    host, credly, template_id = connected
    other = credly.add_template("Data Badge")
    accounts.sync_templates(host.state)
    accounts.add_mapping(host.state, COURSES[1], template_id)
    accounts.add_mapping(host.state, COURSES[2], other)
    issue(host)
    issue(host, course_id="data", kind="learning_path")

    assert statuses(host) == ["waiting", "waiting", "can_be_earned"]
    assert statuses(host, can_be_earned=False) == ["waiting", "waiting"]
    assert the_badge(host, course_id="py-101").course_id == "py-101"
    assert the_badge(host, course_id="sql").status == "can_be_earned"
    assert statuses(host, course_id="sql", can_be_earned=False) == []
    assert statuses(host, course_id="data") == []
    path = the_badge(host, course_id="data", kind="learning_path")
    assert (path.name, path.kind) == ("Data Badge", "learning_path")


def test_first_what_waits_then_the_newest(connected: Connected) -> None:
    host, credly, _ = connected
    names = ["Zebra", "apple", "Berry"]
    templates = [credly.add_template(name) for name in names]
    accounts.sync_templates(host.state)

    for template_id, course in zip(templates, COURSES, strict=True):
        mapped = Course(id=f"new-{course.id}", title=course.title)
        accounts.add_mapping(host.state, mapped, template_id)

    assert [each.name for each in host.credly.badges_of("42")] == [
        *("apple", "Berry", "Python Badge", "Zebra")
    ]

    for course_id in ("new-py-101", "new-sql", "new-data"):
        issue(host, course_id=course_id)

    first, _, last = credly.badges
    credly.accept(first["id"])
    credly.accept(last["id"])
    poll_now(host.state)
    assert [(each.name, each.status) for each in host.credly.badges_of("42")] == [
        ("apple", "waiting"),
        ("Berry", "earned"),
        ("Zebra", "earned"),
        ("Python Badge", "can_be_earned"),
    ]


@pytest.mark.parametrize("wrong", [None, "", "a" * 192, 1.5, b"42", "a\x00b"])
def test_what_can_be_no_id_is_refused(connected: Connected, wrong: t.Any) -> None:
    badges_of = connected.host.credly.badges_of

    for given in ({"member_id": wrong}, {"member_id": "42", "tenant": wrong}):
        with pytest.raises(ValueError, match="must"):
            badges_of(**given)

    if wrong is not None:
        with pytest.raises(ValueError, match="course_id"):
            badges_of("42", course_id=wrong)


def test_an_integer_is_an_id_too(connected: Connected) -> None:
    issue(connected.host)

    assert connected.host.credly.badges_of(t.cast(str, 42))[0].status == "waiting"


# How it is read


def fill(host: Host, number: int) -> None:
    """Have a member with so many badges, all accepted, and others with as many."""
    issue(host)
    (row,) = host.db.session.execute(sa.select(Issuance.__table__)).mappings()
    rows = [
        {
            **{name: value for name, value in row.items() if name != "id"},
            "member_id": member_id,
            "course_id": f"course-{each}",
            "badge_name": f"Badge {each} of {member_id}",
            "badge_id": (badge_id := str(uuid.uuid4())),
            "badge_state": "accepted",
            "public": True,
            "page_url": f"https://www.credly.com/badges/{badge_id}",
        }
        for each in range(number)
        for member_id in ("many", "other")
    ]
    host.db.session.execute(sa.insert(Issuance), rows)
    host.db.session.commit()
    host.db.session.remove()


@every_database
def test_any_number_is_read_by_one_statement_that_finds_them_by_an_index(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    connect(host, credly)
    fill(host, 500)
    asked = len(credly.received)
    seen: list[int] = []

    # Once before, for what is read once in a connection's life.
    host.credly.badges_of("many")

    for member_id in ("many", "none"):
        host.db.session.rollback()

        with statements(host) as said:
            seen.append(len(host.credly.badges_of(member_id)))

        assert len(said) == 1
        assert said[0].startswith("SELECT")

    assert seen == [501, 1]
    assert len(credly.received) == asked

    with statements(host) as said:
        page = shown(host, '{{ credly_badges("many") }}')

    assert len(said) == 1
    assert len(links_in(page)) == 1000 and "of other" not in page
    assert len(page) < 1_000_000


@every_database
def test_a_members_badges_neither_commit_nor_wait_for_the_hosts_work(
    make_connected: MakeConnected,
) -> None:
    host, _, _ = make_connected(
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0}
    )
    host.complete()
    host.db.session.execute(sa.update(Issuance).values(badge_name="Not saved"))
    assert host.credly.badges_of("42")[0].name == "Not saved"
    assert "Not saved" in shown(host)
    host.db.session.rollback()
    assert host.credly.badges_of("42")[0].name == "Python Badge"


@every_database
def test_a_page_is_shown_where_the_badges_cannot_be_read(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    @host.app.route("/me")
    def me() -> str:
        host.db.session.execute(sa.text("SELECT 1"))
        page = render_template_string('<p>Me</p>{{ credly_badges("42") }}')
        host.db.session.execute(sa.text("SELECT 1"))
        return page

    with host.app.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE credly_batch_row")
        connection.exec_driver_sql("DROP TABLE credly_to_check")
        connection.exec_driver_sql("DROP TABLE credly_attempt")
        connection.exec_driver_sql("DROP TABLE credly_issuance")

    page = host.app.test_client().get("/me")
    assert page.status_code == 200
    assert text_of(page.text) == (
        "Me The badges cannot be shown at the moment. Try again later."
    )
    (record,) = [each for each in caplog.records if hasattr(each, "credly_event")]
    assert record.__dict__["credly_event"] == "state_not_read"
    assert "42" not in record.getMessage()


# The page


def test_the_words_and_the_links(connected: Connected) -> None:
    host, credly, template_id = connected
    assert text_of(shown(host)) == "Python Badge Can be earned"

    host.complete(completed_at=NOON)
    assert text_of(shown(host)) == "Python Badge On its way"
    assert links_in(shown(host)) == []

    host.drain()
    (issued,) = credly.badges
    page = f"https://www.credly.com/badges/{issued['id']}"
    assert text_of(shown(host)) == (
        "Python Badge Waiting for you Accept your badge: Python Badge"
    )
    assert links_in(shown(host)) == [f"{page}/accept"]

    credly.accept(issued["id"])
    poll_now(host.state)
    assert text_of(shown(host)) == (
        "Python Badge Earned Issued on 4 March 2026"
        " View Python Badge at Credly Add to LinkedIn: Python Badge"
    )
    assert links_in(shown(host)) == [page, the_badge(host).linkedin_url]

    change(host, expires_at=dt.datetime(2026, 5, 6, tzinfo=dt.UTC))
    assert text_of(shown(host)) == (
        "Python Badge Expired 6 May 2026 View Python Badge at Credly"
    )

    change(host, badge_state="rejected")
    assert text_of(shown(host)) == "Python Badge Declined"
    assert links_in(shown(host)) == []

    change(host, state="revoked", revocation_reason="Copied.", error="Copied.")
    assert text_of(shown(host)) == "Python Badge No longer valid"


def test_where_there_is_nothing(host: Host) -> None:
    with host.app.app_context():
        assert text_of(shown(host)) == "No badges yet."
        # There is no badge for this course.
        assert text_of(shown(host, "{{ credly_badges('42', course_id='x') }}")) == ""


def test_a_host_may_leave_out_what_can_be_earned_and_the_pictures(
    connected: Connected,
) -> None:
    host = connected.host
    assert "<img" in shown(host)
    assert "<img" not in shown(host, "{{ credly_badges('42', pictures=False) }}")
    assert text_of(shown(host, "{{ credly_badges('42', can_be_earned=False) }}")) == (
        "No badges yet."
    )
    assert "referrerpolicy" in shown(host).partition("<img")[2].partition(">")[0]


def test_a_page_with_badges_is_kept_by_no_cache(connected: Connected) -> None:
    host = connected.host

    @host.app.route("/me")
    def me() -> tuple[str, dict[str, str]]:
        html = render_template_string("{{ credly_badges('42') }}")
        return html, {"Cache-Control": "public, max-age=60"}

    answer = host.app.test_client().get("/me")
    assert answer.headers["Cache-Control"] == "no-store, private"


def test_nothing_of_the_address_says_whose_badges_are_shown(
    connected: Connected,
) -> None:
    host = connected.host
    issue(host)

    @host.app.route("/me")
    def me() -> str:
        return render_template_string("{{ credly_badges('7') }}")

    for query in ("member_id=42", "tenant=x", "course_id=py-101&id=42"):
        page = host.app.test_client().get(f"/me?{query}")
        assert text_of(page.text) == "Python Badge Can be earned"


HOSTILE = [
    "javascript:alert(1)",
    "http://www.credly.com/badges/1",
    "https://credly.com.evil.example/badges/1",
    "https://www.credly.com@evil.example/",
    "https://evil.example\\@www.credly.com/",
    "//evil.example",
    "https://notcredly.com/",
    "https://www.crеdly.com/",  # noqa: RUF001
    "data:text/html,x",
    " https://www.credly.com/",
    "",
]


@pytest.mark.slow
@pytest.mark.parametrize("url", HOSTILE)
@pytest.mark.parametrize("state", ["pending", "accepted"])
def test_a_link_elsewhere_is_left_out(
    connected: Connected, url: str, state: str
) -> None:
    host = connected.host
    issue(host)
    change(host, badge_state=state, accept_url=url, page_url=url)
    host.db.session.execute(sa.update(Template).values(image_url=url))
    host.db.session.commit()
    badge = the_badge(host)

    assert (badge.accept_url, badge.page_url) == (None, None)
    assert (badge.image_url, badge.linkedin_url) == (None, None)
    assert Tree(shown(host)).links[2:] == []


@pytest.mark.parametrize("site", ["www.credly.com", "sandbox.credly.com"])
def test_links_to_credly_and_its_sandbox_are_shown(
    connected: Connected, site: str
) -> None:
    host = connected.host
    issue(host)
    change(host, accept_url=f"https://{site}/badges/1/accept")

    assert the_badge(host).accept_url == f"https://{site}/badges/1/accept"


def test_foreign_text_adds_no_tag(connected: Connected) -> None:
    host = connected.host
    issue(host)
    change(host, badge_state="accepted", page_url=PAGE, public=True)
    # The tags of the style sheet stand in the first alone.
    shown(host)
    benign = Tree(shown(host)).found

    for text in PAYLOADS:
        change(host, badge_name=text[:255])
        found = Tree(shown(host))
        assert found.found == benign, text
        picture, page, linkedin = found.links
        assert picture.startswith("https://images.credly.com/") and page == PAGE
        assert linkedin.startswith("https://www.linkedin.com/profile/add?startTask=")


def test_a_host_puts_a_template_of_its_own_in_the_place_of_ours(
    make_connected: MakeConnected,
) -> None:
    each = "{{ badge.name | upper }}: {{ badge.status }}"
    own = f"{{% for badge in badges %}}{each}{{% endfor %}}"

    def setup(app: Flask, db: SQLAlchemy) -> None:
        app.jinja_loader = jinja2.DictLoader({"credly/member/badges.html": own})

    host, _, _ = make_connected(setup=setup)
    assert shown(host) == "PYTHON BADGE: can_be_earned"


def strict(app: Flask, db: SQLAlchemy) -> None:
    app.jinja_options = {**app.jinja_options, "undefined": jinja2.StrictUndefined}
    app.jinja_env.autoescape = False


def test_none_of_the_hosts_options_of_jinja_matters(
    make_connected: MakeConnected,
) -> None:
    host, _, _ = make_connected(setup=strict)
    host.complete()
    host.drain()
    change(host, badge_name="<b>", badge_state="accepted", page_url=PAGE)
    assert "<bdi>&lt;b&gt;</bdi>" in shown(host)


# Communities


def test_each_community_has_its_own(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    here: list[str | None] = ["north"]
    host = make_host(tenant=lambda: here[0], CREDLY_PLATFORM_NAME="Gradual")
    south = credly.add_organization()

    with host.app.app_context():
        for name, organization in (("north", credly), ("south", south)):
            template_id = organization.add_template(f"Badge of {name}")
            accounts.connect(
                host.app.extensions["credly"].of(name),
                organization_id=organization.organization_id,
                client_id=organization.client_id,
                client_secret=organization.client_secret,
            )
            accounts.add_mapping(
                host.app.extensions["credly"].of(name), COURSES[0], template_id
            )

        for name in ("north", "south"):
            host.complete(tenant=name)

        host.drain()
        change(host, badge_state="accepted", page_url=PAGE, public=True)

        assert host.credly.badges_of("42") == []
        (badge,) = host.credly.badges_of("42", tenant="south")
        assert badge.name == "Badge of south"
        # The platform is not who issues it.
        assert "certUrl" in str(badge.linkedin_url)
        assert "organizationName" not in str(badge.linkedin_url)

        for here[0] in ("north", "south"):
            assert f"Badge of {here[0]} Earned" in text_of(shown(host))

        template = '{{ credly_badges("42", tenant="north") }}'
        assert "Badge of north" in shown(host, template)

        here[0] = None
        assert shown(host, '<p>Me</p>{{ credly_badges("42") }}') == "<p>Me</p>"


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_an_id_that_the_database_takes_for_another_is_refused(host: Host) -> None:
    with host.app.app_context(), pytest.raises(ValueError, match="end with a space"):
        host.credly.badges_of("42 ")


# The recipes

PAGE_OF_DOCS = pathlib.Path(__file__).parent.parent / "docs/members.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE_OF_DOCS.read_text(), re.S)


def test_the_recipes_work_as_written(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    own, _, course, staff = blocks("html")
    api, for_staff = blocks("python")
    templates = jinja2.DictLoader(
        {"me.html": own, "course.html": course, "staff/member.html": staff}
    )

    class User:
        id = 42

    def setup(app: Flask, db: SQLAlchemy) -> None:
        app.jinja_loader = templates
        app.context_processor(lambda: {"current_user": User})

    host = make_host(setup=setup)
    names: dict[str, t.Any] = {
        "app": host.app,
        "credly": host.credly,
        "current_user": User,
        "dataclasses": dataclasses,
        "login_required": lambda view: view,
        "staff_only": lambda view: view,
        "render_template": render_template,
    }

    for code in (api, for_staff):
        exec(compile(code, "docs/members.md", "exec"), names)

    @host.app.route("/me")
    def me() -> str:
        return render_template("me.html")

    @host.app.route("/courses/<id>")
    def show_course(id: str) -> str:
        return render_template("course.html", completed=True, course=Course(id, id))

    with host.app.app_context():
        other = credly.add_template("Other")
        connect(host, credly)
        accounts.add_mapping(host.state, COURSES[1], other)

    client = host.app.test_client()
    assert "Can be earned" in text_of(client.get("/me").text)
    assert text_of(client.get("/courses/py-101").text) == "Your badge"

    with host.app.app_context():
        issue(host, completed_at=NOON)

    accept = f"https://www.credly.com/badges/{credly.badges[0]['id']}/accept"
    assert links_in(client.get("/courses/py-101").text) == [accept]
    assert links_in(client.get("/courses/sql").text) == []
    found = client.get("/api/me/badges").json
    assert [each["status"] for each in found] == ["waiting", "can_be_earned"]
    assert found[0]["accept_url"] == accept
    page = client.get("/staff/members/42").text
    assert text_of(page) == "Python Badge: waiting 2026-03-04"
    assert "https" not in page


def test_the_page_has_every_status_and_field() -> None:
    said = PAGE_OF_DOCS.read_text()

    words = re.findall(r"^\| [A-Z][\w ]+ \| `(\w+)` \|", said, re.M)
    assert set(words) == set(t.get_args(MemberStatus))
    _, _, table = said.partition("| field | |")
    fields = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]+ \|$", table, re.M)
    assert set(re.findall(r"\w+", " ".join(fields))) == {
        field.name for field in dataclasses.fields(MemberBadge)
    }
