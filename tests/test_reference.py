"""What the product promises its admins and members, one test for each line, with the
words to the letter. Details are tested where they belong.
"""

from __future__ import annotations

import datetime as dt
import html
import pathlib
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import Connected
from conftest import COURSES
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import Member
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import WINDOW

REFUSED = (
    "Unable to connect to Credly. Please check your Organization ID and OAuth"
    " credentials."
)
REMOVE = (
    "Are you sure you want to remove this integration? The configuration will be"
    " cleared and it is irreversible."
)


def words(page: str) -> str:
    """What a reader sees, with single blanks."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def browser(host: Host) -> Browser:
    return Browser(host.app)


def test_a01_the_card_has_a_title_and_a_button(browser: Browser) -> None:
    page = browser.get(LIST).text

    assert re.search(r"<h2[^>]*>Credly</h2>", page)
    assert re.search(r'<a [^>]*href="/integrations/credly"[^>]*>Set Up<', page)
    assert re.search(r"<h1[^>]*>Credly Integration</h1>", browser.get(WINDOW).text)


def test_a02_the_window_has_three_fields_in_this_order(browser: Browser) -> None:
    page = browser.get(WINDOW).text
    labels = re.findall(r"<label[^>]*>([^<]+)</label>", page)

    assert labels == ["Organization ID", "Client ID", "Client Secret"]
    assert re.search(r'name="client_secret"\s+type="password"\s+aria', page)


def test_a03_the_button_says_connect(browser: Browser) -> None:
    assert re.search(r"<button[^>]*>Connect</button>", browser.get(WINDOW).text)


@pytest.mark.parametrize("refusal", ["secret", "organization", "timeout"])
def test_a04_nothing_is_saved_before_it_is_verified(
    host: Host, browser: Browser, credly: CredlySimulator, refusal: str
) -> None:
    changes = {}

    if refusal == "secret":
        changes["client_secret"] = "wrong"
    elif refusal == "organization":
        changes["organization_id"] = "11111111-2222-4333-8444-555555555555"
    else:
        credly.fail("templates", how="hang")

    assert browser.connect(credly, **changes).status_code == 422

    with host.app.app_context():
        assert host.db.session.scalars(sa.select(Account)).all() == []


def test_a05_the_refusal_is_worded(browser: Browser, credly: CredlySimulator) -> None:
    page = browser.connect(credly, client_secret="wrong-secret").text

    assert words(page).count(REFUSED) == 1
    assert f'value="{credly.organization_id}"' in page
    assert f'value="{credly.client_id}"' in page
    assert "wrong-secret" not in page


@pytest.mark.parametrize(
    ("platform", "title"),
    [
        ("Gradual", "Gradual Courses → Credly Badges"),
        ("", "Courses → Credly Badges"),
    ],
)
def test_a06_two_sections_appear_once_connected(
    make_host: MakeHost, credly: CredlySimulator, platform: str, title: str
) -> None:
    host = make_host(CREDLY_PLATFORM_NAME=platform)
    browser = Browser(host.app)
    before = words(browser.get(WINDOW).text)
    browser.connect(credly)
    titles = re.findall(r"<h2[^>]*>\s*([^<]+?)\s*</h2>", browser.get(WINDOW).text)

    assert "Credly Badges" not in before
    assert "Error Log" not in before
    assert titles.count(title) == 1
    assert titles.count("Error Log") == 1


def test_a07_active_templates_are_synced_to_the_last_page(
    host: Host, browser: Browser, credly: CredlySimulator
) -> None:
    for number in range(120):
        credly.add_template(f"Badge {number}")

    credly.add_template("Old", state="archived")
    credly.add_template("New", state="draft")
    browser.connect(credly)

    with host.app.app_context():
        names = {
            each.name for each in accounts.list_templates(host.db.session, "default")
        }

    assert names == {f"Badge {number}" for number in range(120)}


def test_a08_a_row_has_two_dropdowns(browser: Browser, credly: CredlySimulator) -> None:
    credly.add_template("Python Badge")
    browser.connect(credly)
    page = browser.get(WINDOW).text
    first, second = re.findall(r"<select name=\"(\w+)\".*?</select>", page, re.S)
    courses, templates = (
        re.findall(r"<option[^>]*>([^<]+)</option>", select)
        for select in re.findall(r"<select.*?</select>", page, re.S)
    )

    assert (first, second) == ("course", "template")
    assert courses == ["Select…", "Python 101", "SQL basics", "Data path"]
    assert templates == ["Select…", "Python Badge"]


def test_a09_add_a_mapping_adds_a_row(
    browser: Browser, credly: CredlySimulator
) -> None:
    browser.connect(credly)
    page = browser.get(WINDOW).text
    (link,) = re.findall(r'<a[^>]*hx-get="([^"]+)"[^>]*>Add a mapping</a>', page)

    assert "Save mapping" in browser.get(link, headers=HX).text


def test_a10_the_remove_icon_deletes_the_mapping(
    browser: Browser, connected: Connected
) -> None:
    page = browser.get(WINDOW).text
    (action,) = re.findall(r'action="([^"]+/mappings/\d+/remove)"', page)
    assert 'aria-label="Remove mapping for Python 101"' in page

    browser.post(action)
    assert accounts.list_mappings(connected.host.db.session, "default") == []


def test_a11_each_course_has_one_template_and_a_template_many_courses(
    browser: Browser, connected: Connected
) -> None:
    again = browser.post(
        f"{WINDOW}/mappings", course="course:py-101", template=connected.template_id
    )
    other = browser.post(
        f"{WINDOW}/mappings", course="course:sql", template=connected.template_id
    )

    assert (again.status_code, other.status_code) == (422, 303)


@pytest.mark.parametrize("course", COURSES, ids=lambda course: course.kind)
def test_a12_a_completed_course_or_learning_path_is_the_trigger(
    connected: Connected, course: t.Any
) -> None:
    host, credly, template_id = connected

    if course != COURSES[0]:
        accounts.add_mapping(host.state, course, template_id)

    host.complete(course_id=course.id, kind=course.kind)
    host.complete(course_id="unmapped")
    host.drain()

    assert len(credly.badges) == 1


def test_a13_the_request_names_the_member(connected: Connected) -> None:
    host, credly, template_id = connected
    host.complete(completed_at=dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC))
    host.drain()
    (request,) = [each for each in credly.received if each.kind == "issue"]
    body = t.cast(dict[str, t.Any], request.json)

    assert body.pop("issuer_earner_id")
    assert body == {
        "recipient_email": "member-42@example.org",
        "issued_to_first_name": "Ada",
        "issued_to_last_name": "Example",
        "badge_template_id": template_id,
        "issued_at": "2026-11-01 12:00:00 +0000",
    }


def test_a14_a_member_gets_one_badge_for_each_course(connected: Connected) -> None:
    host, credly, _ = connected

    for _ in range(3):
        host.complete()
        host.drain()

    other = credly.add_template("Another Badge")
    accounts.sync_templates(host.state)
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
    host.complete()
    host.drain()

    assert len(credly.badges) == 1


@pytest.mark.parametrize("status", [500, 502, 422, 400, 404])
def test_a15_a_request_that_fails_is_repeated_exactly_once(
    connected: Connected, status: int
) -> None:
    host, credly, _ = connected
    credly.fail("issue", status=status, times=9)
    host.complete()
    host.drain(5)

    assert credly.count("issue") == 2
    assert host.row().state == "failed"


def test_a16_the_badge_is_issued_in_the_background(connected: Connected) -> None:
    host, credly, _ = connected
    before = len(credly.received)
    host.complete()
    assert len(credly.received) == before

    host.drain()
    assert len(credly.badges) == 1


def log_rows(browser: Browser) -> list[list[str]]:
    page = browser.get(f"{WINDOW}/errors").text
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[words(cell) for cell in row] for row in cells]


def test_a17_the_log_has_three_columns_newest_first(
    browser: Browser, connected: Connected
) -> None:
    host, credly, _ = connected
    credly.fail("issue", status=422, times=4)

    for member in "1", "2":
        host.complete(member)
        host.drain(2)

    header, newest, oldest = log_rows(browser)

    assert header == ["Timestamp", "Error", "Details"]
    assert re.fullmatch(r"\d+ \w+ \d{4}, \d\d:\d\d UTC Badge 2", newest[0])
    assert ("member-2" in newest[2], "member-1" in oldest[2]) == (True, True)


def test_a18_an_expired_connection_is_worded(
    browser: Browser, connected: Connected
) -> None:
    host, credly, _ = connected
    credly.revoke_client()
    host.complete()
    host.drain()

    assert log_rows(browser)[1][1:] == [
        "Connection expired",
        "Your Credly OAuth credentials have expired or were revoked. Please reconnect.",
    ]


def test_a19_a_failed_badge_is_worded(browser: Browser, connected: Connected) -> None:
    host, credly, _ = connected
    body = {"data": {"message": "Not today."}, "metadata": None}
    credly.fail("issue", status=422, body=body, times=2)
    host.complete()
    host.drain(2)

    assert log_rows(browser)[1][1:] == [
        "Badge issuance failed",
        "Failed to issue badge “Python Badge” to “member-42@example.org”."
        " Not today. (HTTP 422)",
    ]


def test_a20_a_rate_limit_is_worded_and_pauses(
    browser: Browser, connected: Connected
) -> None:
    host, credly, _ = connected
    credly.fail("issue", status=429, headers={"Retry-After": "30"})
    host.complete()
    host.drain(3)

    assert credly.count("issue") == 1
    assert log_rows(browser)[1][1:] == [
        "API Rate Limit",
        "Hit Credly API rate limit; badge issuance paused. Too Many Requests"
        " (HTTP 429)",
    ]


def test_a21_the_card_has_remove(browser: Browser, connected: Connected) -> None:
    assert "Remove Credly" in words(browser.get(LIST).text)


def test_a22_removing_is_confirmed_in_these_words(
    browser: Browser, connected: Connected
) -> None:
    page = browser.get(LIST).text
    (dialog,) = re.findall(r"<dialog.*?</dialog>", page, re.S)

    assert REMOVE in words(dialog)
    assert REMOVE in words(browser.get(f"{WINDOW}/remove").text)


def test_a23_removing_deletes_credentials_mappings_and_log(
    browser: Browser, connected: Connected
) -> None:
    host, credly, _ = connected
    credly.fail("issue", status=422, times=2)
    host.complete()
    host.drain(2)
    browser.post(f"{WINDOW}/remove")

    for model in (Account, Mapping, LogEntry):
        assert host.db.session.scalars(sa.select(model)).all() == []

    raw = pathlib.Path(str(host.db.engine.url.database)).read_bytes()
    assert credly.client_secret.encode() not in raw


def test_a24_missing_profile_data_is_said_before_credly_is_asked(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    host.complete(member=Member("42", "ada@example.org", "Ada", " "))
    host.drain()
    row = host.db.session.scalars(sa.select(Issuance)).one()

    assert row.state == "failed"
    assert credly.count("issue") == 0
    assert host.log()[0][1].endswith("The member's profile has no last name.")
