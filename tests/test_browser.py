"""The product in a real browser, as an admin uses it."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import os
import pathlib
import re
import typing as t

import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from conftest import COURSES
from flask import redirect
from playwright.sync_api import expect
from playwright.sync_api import Locator
from playwright.sync_api import Page
from playwright.sync_api import Route

from flask_credly import accounts
from flask_credly import Course
from flask_credly import i18n
from flask_credly import jobs
from flask_credly import Member
from flask_credly.credly.answers import clean
from flask_credly.models import Account
from tests.catalogue import catalogues
from tests.support.words import german
from tests.support.words import speaking
from tests.support.words import write_catalogue

if t.TYPE_CHECKING:
    pass
from tests.support.browser import choose
from tests.support.browser import click
from tests.support.browser import expect_said
from tests.support.browser import expect_title
from tests.support.browser import fill_in
from tests.support.browser import focused
from tests.support.browser import HOST_LAYOUT
from tests.support.browser import HTMX_2
from tests.support.browser import HTMX_4
from tests.support.browser import LIST
from tests.support.browser import LONG
from tests.support.browser import make_site as make_site
from tests.support.browser import MakeSite
from tests.support.browser import open_page as open_page
from tests.support.browser import OpenPage
from tests.support.browser import ORGANIZATION
from tests.support.browser import ROOT
from tests.support.browser import rows
from tests.support.browser import Shoot
from tests.support.browser import shoot as shoot
from tests.support.browser import Site
from tests.support.browser import wait_for_htmx
from tests.support.browser import Watch
from tests.support.browser import watches as watches
from tests.support.browser import WINDOW

REFUSED = (
    "Unable to connect to Credly. Please check your Organization ID and OAuth"
    " credentials."
)

AXE = Axe().axe_script

# As much as a body can say to all that is in it.
SAID = {
    "boost": "true",
    "confirm": "Sure?",
    "disabled-elt": "button",
    "encoding": "multipart/form-data",
    "headers": '{"X-CSRFToken": "x"}',
    "include": "#stray",
    "indicator": "#host",
    "prompt": "Why?",
    "push-url": "true",
    "replace-url": "true",
    "select": "#host",
    "select-oob": "#host",
    "swap": "innerHTML show:none",
    "sync": "body:drop",
    "target": "#host",
    "vals": '{"course": "course:data", "key": "e", "template": "x", "undo": "9"}',
}
STRAY = '<input id="stray" name="template" value="stray" aria-label="Stray" />'


def loud(inherited: str, config: str = "{}", **more: str) -> str:
    """A layout whose body says all that to htmx."""
    said = {**SAID, **more}
    body = " ".join(f"hx-{name}{inherited}='{value}'" for name, value in said.items())
    page = re.sub("<body[^>]*>", f"<body {body}>{STRAY}", HOST_LAYOUT)
    return re.sub("content='[^']*'", f"content='{config}'", page)


QUIET = '{"includeIndicatorStyles": false}'
LOUD_2 = loud("", QUIET, params="none")
LOUD_4 = loud(
    ":inherited",
    disable="button",
    trigger="dblclick",
    **{"status:4xx": "target:#host", "status:422": "target:#host"},
)
LOUD_4_AS_2 = loud("", '{"implicitInheritance": true}', disable="button")
ALONE_2 = HOST_LAYOUT.replace(
    QUIET, '{"includeIndicatorStyles": false, "disableInheritance": true}'
)


def test_an_admin_connects_maps_watches_and_removes(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot
) -> None:
    site = make_site()
    credly = site.credly
    page = open_page(site)
    expect(page).to_have_title("Integrations")
    expect_title(page, "Integrations")
    expect(page.get_by_text("Not connected")).to_be_visible()
    shoot(page, "1-list")

    # Connect: once refused, once not
    click(page, "Set Up Credly", "link")
    expect_title(page, "Credly Integration")
    expect(page.get_by_role("heading", name="Error Log")).to_have_count(0)
    shoot(page, "2-connect")
    fill_in(page, credly, **{"Client Secret": "not-the-secret"})
    click(page, "Connect")
    summary = page.get_by_role("alert")
    expect(summary.get_by_text(REFUSED, exact=True)).to_be_visible()
    expect(summary).to_be_focused()
    expect(page.get_by_label("Organization ID")).to_have_value(credly.organization_id)
    expect(page.get_by_label("Client ID")).to_have_value(credly.client_id)
    expect(page.get_by_label("Client Secret")).to_have_value("")
    assert not site.is_connected()
    shoot(page, "3-refused")
    page.get_by_label("Client Secret").fill(credly.client_secret)
    click(page, "Connect")
    expect_said(page, "Connected to Credly. 1 badge template loaded.")
    expect(
        page.get_by_role("heading", name="Gradual Courses → Credly Badges", exact=True)
    ).to_be_visible()
    expect(page.get_by_role("heading", name="Error Log")).to_be_visible()
    assert credly.client_secret not in page.content()
    shoot(page, "4-connected")

    # Map: a row is open already, and one more on demand
    choose(page, "Python 101", "Python Badge")
    shoot(page, "5-row")
    click(page, "Save mapping")
    expect_said(page, "Mapping saved: Python 101 to Python Badge.")
    expect(rows(page)).to_have_count(1)
    click(page, "Add a mapping", "link")
    expect(page.locator(".credly-editing select").first).to_be_focused()
    expect(page.get_by_role("option", name="Python 101")).to_have_count(0)
    choose(page, "Data path", "Python Badge")
    click(page, "Save mapping")
    expect(rows(page)).to_have_count(2)
    shoot(page, "6-mapped")
    assert site.mappings() == [
        ("Data path", "Python Badge"),
        ("Python 101", "Python Badge"),
    ]

    # A member completes
    completed_at = dt.datetime(2026, 3, 1, 9, 30, tzinfo=dt.UTC)
    member = Member("42", "ada@example.org", "Ada", "Example")
    site.complete("42", member=member, completed_at=completed_at)
    (badge,) = credly.badges
    assert badge["badge_template"]["id"] == site.template_id
    assert badge["recipient_email"] == "ada@example.org"
    assert badge["issued_to_first_name"] == "Ada"
    assert badge["issued_to_last_name"] == "Example"
    assert badge["issued_at"].startswith("2026-03-01T09:30:00")

    # Another one does, and it fails
    site.fail("7")
    page.reload()
    table = page.get_by_role("region", name="Error Log").get_by_role("table")
    expect(table.get_by_role("columnheader")).to_have_text(
        ["Timestamp", "Error", "Details"]
    )
    expect(table.get_by_role("cell").nth(1)).to_have_text("Badge issuance failed")
    expect(table.get_by_role("cell").nth(2)).to_contain_text(
        "Failed to issue badge “Python Badge” to “member-7@example.org”."
    )
    shoot(page, "7-failed")

    # Remove, on second thoughts not, and then after all
    page.goto(LIST)
    shoot(page, "8-list-connected")
    opener = page.locator("#credly-remove-opener")
    dialog = page.get_by_role("dialog")
    opener.click()
    expect(dialog).to_contain_text(
        "Are you sure you want to remove this integration? The configuration will be"
        " cleared and it is irreversible."
    )
    expect(dialog.get_by_text("Cancel")).to_be_focused()
    shoot(page, "9-dialog")
    dialog.get_by_text("Cancel").click()
    expect(dialog).to_be_hidden()
    assert site.is_connected()
    opener.click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    assert site.is_connected()
    opener.click()
    dialog.get_by_role("button", name="Remove").click()
    expect_said(page, "Credly was removed.")
    expect(page.get_by_text("Not connected")).to_be_visible()
    shoot(page, "10-removed")
    assert not site.is_connected()
    assert site.mappings() == []
    assert len(credly.badges) == 1


WAYS: dict[str, dict[str, t.Any]] = {
    "bundled": {},
    "no-javascript": {},
    "host-htmx-2": {"layout": HOST_LAYOUT, "script": HTMX_2},
    "host-htmx-4": {"layout": HOST_LAYOUT, "script": HTMX_4},
    "host-without": {"layout": HOST_LAYOUT},
    "loud-htmx-2": {"layout": LOUD_2, "script": HTMX_2},
    "alone-htmx-2": {"layout": ALONE_2, "script": HTMX_2},
    "loud-htmx-4": {"layout": LOUD_4, "script": HTMX_4},
    "loud-htmx-4-as-2": {"layout": LOUD_4_AS_2, "script": HTMX_4},
}

WITH_HTMX = tuple(way for way in WAYS if way not in ("no-javascript", "host-without"))


@pytest.mark.parametrize("way", WAYS)
def test_the_main_way_works_with_every_htmx_and_without(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    page = open_page(site, java_script_enabled=way != "no-javascript")
    loads: list[str] = []

    def swapped() -> None:
        """Check that htmx, if there is one, has spared a page."""
        if way in WITH_HTMX:
            assert loads == []
            expect(page.locator("body")).not_to_be_focused()
        else:
            assert len(loads) > 0

        loads.clear()

    # Connect
    click(page, "Set Up Credly", "link")
    expect_title(page, "Credly Integration")
    page.on(
        "request",
        lambda request: request.is_navigation_request() and loads.append(request.url),
    )
    fill_in(page, site.credly, **{"Client ID": "another"})
    click(page, "Connect")
    expect(page.get_by_text(REFUSED, exact=True)).to_be_visible()
    expect(page).to_have_title("Error: Credly Integration")
    swapped()
    fill_in(page, site.credly)
    click(page, "Connect")
    expect_said(page, "Connected to Credly.")
    loads.clear()

    # Map: an error, then not
    click(page, "Save mapping")
    expect(page.get_by_text("Select a badge template.")).to_be_visible()

    if way not in WITH_HTMX:
        expect(page).to_have_title("Error: Credly Integration")

    swapped()
    choose(page, "Python 101", "Python Badge")
    click(page, "Save mapping")
    expect_said(page, "Mapping saved: Python 101 to Python Badge.")
    expect(rows(page)).to_have_count(1)
    swapped()

    # Change
    click(page, "Change mapping for Python 101", "link")
    expect(page.get_by_label("Course or learning path")).to_have_value("course:py-101")
    swapped()
    page.get_by_label("Course or learning path").select_option(label="SQL basics")
    click(page, "Save mapping")
    expect_said(page, "Mapping saved: SQL basics to Python Badge.")
    swapped()

    # Open one more, and close it
    click(page, "Add a mapping", "link")
    expect(page.get_by_role("button", name="Save mapping")).to_be_visible()
    swapped()
    click(page, "Cancel", "link")
    expect(page.get_by_role("button", name="Save mapping")).to_have_count(0)
    swapped()

    # Remove the mapping, and take that back
    click(page, "Remove mapping for SQL basics")
    expect_said(page, "Mapping removed: SQL basics. Badges already issued are kept.")
    assert site.mappings() == []
    swapped()

    if way in WITH_HTMX:
        click(page, "Undo removing the mapping for SQL basics")
    else:
        choose(page, "SQL basics", "Python Badge")
        click(page, "Save mapping")

    expect_said(page, "Mapping saved: SQL basics to Python Badge.")
    expect(rows(page)).to_have_count(1)
    assert site.mappings() == [("SQL basics", "Python Badge")]
    swapped()

    # Remove all
    click(page, "Remove Credly", "link")

    if way == "no-javascript":
        expect(page).to_have_title("Remove Credly")
    else:
        expect(page.get_by_role("dialog")).to_be_visible()
        assert loads == []

    click(page, "Remove")
    expect_said(page, "Credly was removed.")
    assert not site.is_connected()


# Accessibility


def with_errors(page: Page) -> None:
    click(page, "Connect")
    expect(page.get_by_role("alert")).to_be_visible()


def with_a_refusal(page: Page) -> None:
    page.get_by_label("Client Secret").fill("not-the-secret")
    click(page, "Connect")
    expect(page.get_by_text(REFUSED)).to_be_visible()


def with_too_many_tries(page: Page) -> None:
    page.get_by_label("Organization ID").fill(ORGANIZATION)
    page.get_by_label("Client ID").fill("typed-id")
    page.get_by_label("Client Secret").fill("typed-secret")
    click(page, "Connect")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Client ID")).to_have_value("typed-id")
    expect(page.get_by_label("Client Secret")).to_have_value("")


def with_open_rows(page: Page) -> None:
    click(page, "Change mapping for Data path", "link")
    expect(page.locator(".credly-editing")).to_have_count(1)
    click(page, "Add a mapping", "link")
    expect(page.locator(".credly-editing")).to_have_count(2)
    page.get_by_role("button", name="Save mapping").last.click()
    expect(page.get_by_text("Select a badge template.")).to_be_visible()
    click(page, "Remove mapping for Python 101")
    expect(page.locator(".credly-removed")).to_be_visible()


def with_an_empty_test(page: Page) -> None:
    click(page, "Issue test badge")
    expect(page.get_by_role("alert")).to_be_visible()


def with_wrong_months(page: Page) -> None:
    page.get_by_label("Expiry").select_option("months")
    page.get_by_label("Number of months").fill("601")
    click(page, "Save options")
    expect(page.get_by_role("alert")).to_be_visible()


def with_the_dialog(page: Page) -> None:
    click(page, "Remove Credly", "link")
    expect(page.get_by_role("dialog")).to_be_visible()


Steps = cabc.Callable[[t.Any], None]


def with_no_reason(page: Page) -> None:
    click(page, "Revoke")
    expect(page.get_by_role("alert")).to_be_focused()


def with_another_name(page: Page) -> None:
    page.get_by_label("Last name").fill("Lovelace")
    click(page, "Continue")
    expect_title(page, "Changes")


def with_a_wrong_number(page: Page) -> None:
    page.locator("#credly-number").fill("1")
    page.locator(".credly-form .credly-danger").click()
    expect(page.get_by_role("alert")).to_be_focused()


def with_another_number(page: Page) -> None:
    page.locator("#credly-number").fill("7")
    page.locator(".credly-form .credly-primary").click()
    expect(page.get_by_role("alert")).to_be_focused()


SCREENS: dict[str, tuple[Steps | None, str, Steps | None]] = {
    "list": (None, LIST, None),
    "list-connected": (Site.fill, LIST, None),
    "list-expired": (lambda site: (site.fill(), site.expire()), LIST, None),
    "connect": (None, WINDOW, None),
    "connect-errors": (None, WINDOW, with_errors),
    "reconnect": (Site.fill, f"{WINDOW}/connection", with_a_refusal),
    "window-empty": (Site.connect, WINDOW, None),
    "window": (Site.fill, WINDOW, None),
    "window-open-rows": (Site.fill, WINDOW, with_open_rows),
    "window-paused": (
        lambda site: (site.fill(), site.pause(), site.lose_worker()),
        WINDOW,
        None,
    ),
    "window-expired": (lambda site: (site.fill(), site.expire()), WINDOW, None),
    "window-switched-off": (
        lambda site: (site.fill(), site.switch_off(), site.complete("6")),
        WINDOW,
        None,
    ),
    "window-restoring": (
        lambda site: (site.connect(), site.bring_back()),
        WINDOW,
        None,
    ),
    "window-many": (lambda site: site.fill_up(), f"{WINDOW}?mapping=new", None),
    "badges": (
        lambda site: (site.fill(), site.complete("6"), site.pause()),
        f"{WINDOW}/badges",
        None,
    ),
    "badges-restoring": (
        lambda site: (site.connect(), site.bring_back()),
        f"{WINDOW}/badges",
        None,
    ),
    "badge-failed": (Site.fill, f"{WINDOW}/badges/1", None),
    "badge-issued": (
        lambda site: (site.fill(), site.complete("6")),
        f"{WINDOW}/badges/2",
        None,
    ),
    "badge-corrected": (
        lambda site: (site.fill(), site.complete("6"), site.correct(2)),
        f"{WINDOW}/badges/2",
        None,
    ),
    "revoke": (
        lambda site: (site.fill(), site.complete("6")),
        f"{WINDOW}/badges/2/revoke",
        with_no_reason,
    ),
    "correct": (
        lambda site: (site.fill(), site.complete("6"), site.add_templates()),
        f"{WINDOW}/badges/2/correct",
        None,
    ),
    "correction": (
        lambda site: (site.fill(), site.complete("6")),
        f"{WINDOW}/badges/2/correct",
        with_another_name,
    ),
    "again": (
        lambda site: (site.fill(), site.complete("6")),
        f"{WINDOW}/badges/2/again",
        None,
    ),
    "badges-empty": (Site.connect, f"{WINDOW}/badges?status=failed", None),
    "list-of-the-host": (Site.fill, "/settings", None),
    "dialog-of-the-host": (Site.fill, "/settings", with_the_dialog),
    "member": (Site.reward, "/me", None),
    "member-empty": (None, "/me", None),
    "window-old-templates": (
        lambda site: (site.fill(), site.fail_to_sync()),
        WINDOW,
        None,
    ),
    "backfill": (Site.fill, f"{WINDOW}/mappings/1/backfill", None),
    "backfilling": (
        lambda site: (site.fill(), site.begin_backfill()),
        f"{WINDOW}/backfills/1",
        None,
    ),
    "undo": (
        lambda site: (site.fill(), site.issue_to_earlier()),
        f"{WINDOW}/undo?status=issued",
        with_a_wrong_number,
    ),
    "undo-of-earlier": (
        lambda site: (site.fill(), site.issue_to_earlier()),
        f"{WINDOW}/undo?batch=1",
        None,
    ),
    "undoing": (
        lambda site: (site.fill(), site.issue_to_earlier(), site.take_back()),
        f"{WINDOW}/undo/2",
        None,
    ),
    "compare-empty": (Site.connect, f"{WINDOW}/compare", None),
    "compare": (
        lambda site: (site.fill(), site.complete("6"), site.compare()),
        f"{WINDOW}/compare",
        None,
    ),
    "repair": (
        lambda site: (site.fill(), site.complete("6"), site.compare()),
        f"{WINDOW}/compare/repair?bucket=state_differs",
        with_another_number,
    ),
    "withdrawn": (
        lambda site: (site.connect(), site.withdraw()),
        f"{WINDOW}/withdrawn",
        with_a_wrong_number,
    ),
    "badges-withdrawn": (
        lambda site: (site.connect(), site.withdraw()),
        f"{WINDOW}/badges?status=failed",
        None,
    ),
    "retry": (Site.fill, f"{WINDOW}/badges/retry", None),
    "options": (Site.fill, f"{WINDOW}/mappings/1/options", with_wrong_months),
    "test": (Site.fill, f"{WINDOW}/mappings/1/test", with_an_empty_test),
    "errors": (Site.fill, f"{WINDOW}/errors", None),
    "activity": (
        lambda site: (site.fill(), site.act()),
        f"{WINDOW}/activity",
        None,
    ),
    "activity-empty": (None, f"{WINDOW}/activity", None),
    "list-removing": (
        lambda site: (site.fill(), site.lose_worker(), site.begin_to_remove()),
        LIST,
        None,
    ),
    "list-removed": (lambda site: (site.fill(), site.remove()), LIST, None),
    "connect-too-often": (Site.connect_too_often, WINDOW, with_too_many_tries),
    "remove": (Site.fill, f"{WINDOW}/remove", None),
    "dialog": (Site.fill, WINDOW, with_the_dialog),
}

LOOKS: dict[str, dict[str, t.Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "forced": {"forced_colors": "active"},
    "narrow": {"width": 320},
    "rtl": {"dir": "rtl"},
}

MORE_LOOKS: dict[str, dict[str, t.Any]] = {
    "narrow-dark": {"width": 360, "color_scheme": "dark"},
    "narrow-rtl": {"width": 320, "dir": "rtl"},
    "medium": {"width": 760},
}


def set_look(
    page: Page,
    width: int = 1200,
    dir: str = "ltr",
    color_scheme: t.Any = "light",
    forced_colors: t.Any = "none",
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=color_scheme, forced_colors=forced_colors)
    page.evaluate("dir => { document.documentElement.dir = dir }", dir)


def complaints(page: Page) -> list[str]:
    """Ask axe."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {
        "runOnly": {"type": "tag", "values": tags},
        "resultTypes": ["violations"],
    }

    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE)

    found = page.evaluate("options => axe.run(options)", options)["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found
        for node in violation["nodes"]
    ]


OVERHANG = """
    const width = document.documentElement.clientWidth;
    const hidden = (e) => e.closest(".credly-hidden, thead");
    const out = (e) => {
        const box = e.getBoundingClientRect();
        return box.width && (box.right > width + 0.5 || box.left < -0.5);
    };
    const found = [...document.body.querySelectorAll("*")]
        .filter((e) => out(e) && !hidden(e)).map((e) => e.outerHTML);
    if (document.documentElement.scrollWidth > width) {
        found.push(`page of ${document.documentElement.scrollWidth}`);
    }
    return found;
"""


def overhang(page: Page) -> list[str]:
    """Name what is wider than the page, or stands outside of it."""
    return t.cast(list[str], page.evaluate(f"() => {{ {OVERHANG} }}"))


def compare_tree(site: Site, page: Page, screen: str) -> None:
    """Compare what a screen reader is told with the file that was read by a person.
    ``CREDLY_TEST_UPDATE=1`` writes the file.
    """
    root = page.get_by_role("dialog") if "dialog" in screen else page.locator(".credly")
    expect(page.locator("time:not([title])")).to_have_count(0)
    tree = root.aria_snapshot()

    for changing, name in (
        # First: an ID may begin with what reads as a year.
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
        (r"\w{3} \d+, \d{4}, \d+:\d\d\s[AP]M", "TIME"),
        (r"\b\d+ [A-Z]\w+ \d{4}\b|\b\d{4}-\d\d-\d\d\b", "DATE"),
        (f'"?{re.escape(site.credly.client_id)}"?', "CLIENT"),
        (r"127\.0\.0\.1:\d+", "CREDLY"),
        (r"in \d+ minutes", "in MINUTES"),
    ):
        tree = re.sub(changing, name, tree)

    golden = ROOT / "tests/trees" / f"{screen}.yml"

    if os.environ.get("CREDLY_TEST_UPDATE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(tree + "\n")

    assert tree + "\n" == golden.read_text()


def test_a_removal_is_watched_to_its_end(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.fill()
    site.begin_to_remove()
    page = open_page(site, LIST)
    expect(page.get_by_role("progressbar", name="Removal")).to_be_visible()
    expect(page.get_by_text("Set Up")).to_have_count(0)

    with site.context():
        jobs.undo()

    expect_said(page, "Credly was removed.")
    expect(page.get_by_text("Set Up")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_count(0)


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_is_accessible_in_every_look(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot, screen: str
) -> None:
    prepare, path, act = SCREENS[screen]
    site = make_site()

    if prepare is not None:
        prepare(site)

    page = open_page(site, path)

    if act is not None:
        act(page)

    check_looks(site, page, screen, shoot)


def test_the_result_of_a_comparison_comes_into_the_open_page(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    page = open_page(site, f"{WINDOW}/compare")
    page.locator("#credly-compare").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Comparing: 0 badges read")).to_be_visible()
    assert page.get_by_role("heading", name="Result").count() == 0

    with site.context():
        jobs.compare()

    expect(page.get_by_role("heading", name="Result")).to_be_visible()
    expect(page.locator("#credly-flash")).to_have_text("Finished.")
    expect(page.get_by_role("button", name="Compare now")).to_be_visible()


def test_the_operators_page_is_accessible_in_every_look(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot
) -> None:
    site = make_site(tenant=lambda: "north", is_operator=lambda: True)
    site.connect()
    add_communities(site, ["Unbroken" * 23, (LONG * 2)[:191]])
    page = open_page(site, f"{WINDOW}/communities")

    check_looks(site, page, "communities", shoot)


def test_the_operator_turns_pages_of_communities(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site(tenant=lambda: "north", is_operator=lambda: True)
    site.connect()
    add_communities(site, [f"number-{each}" for each in range(52)])
    page = open_page(site, f"{WINDOW}/communities")
    lines = page.locator("tbody tr")

    expect(lines).to_have_count(50)
    click(page, "Next", role="link")
    expect(lines).to_have_count(3)
    click(page, "First page", role="link")
    expect(lines).to_have_count(50)


def add_communities(site: Site, names: list[str]) -> None:
    """Give each the account of the first."""
    with site.context(), site.host.state.engine.begin() as connection:
        table = Account.__table__
        (row,) = connection.execute(sa.select(table)).mappings()
        rows = [{**row, "tenant": each} for each in names]
        connection.execute(sa.insert(table), rows)


def check_looks(site: Site, page: Page, screen: str, shoot: Shoot) -> None:
    compare_tree(site, page, screen)
    found: dict[str, list[str]] = {}

    for name, look in {**LOOKS, **MORE_LOOKS}.items():
        set_look(page, **look)

        if "CREDLY_TEST_SCREENSHOTS" in os.environ:
            shoot(page, f"{screen}-{name}")

        found[name] = overhang(page) + (complaints(page) if name in LOOKS else [])

    assert {name: each for name, each in found.items() if each} == {}


# Loading a page anew takes longer than all that is asked of it.
SHOW = """async (path) => {
    const text = await (await fetch(path)).text();
    const page = new DOMParser().parseFromString(text, "text/html");
    document.documentElement.dir = page.documentElement.dir;
    document.documentElement.lang = page.documentElement.lang;
    document.body.replaceWith(page.body);
}"""


def test_every_language_fits_a_narrow_page(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot
) -> None:
    """The long words of one language push what another has room for off the page."""
    site = make_site()
    site.fill()
    site.begin_backfill()
    page = open_page(site, LIST, viewport={"width": 390, "height": 800})
    found: dict[str, list[str]] = {}

    for language in [name for name, _ in catalogues()]:
        # As if the application had started with this CREDLY_LANGUAGE.
        i18n.init_app(site.host.app, language)

        for number, path in enumerate(IN_EVERY_LANGUAGE):
            page.evaluate(SHOW, path)

            if "CREDLY_TEST_SCREENSHOTS" in os.environ:
                shoot(page, f"{language}-{number}")

            found[f"{language} {path}"] = overhang(page)

        assert page.evaluate("document.documentElement.lang")[:2] == language[:2]
        found[f"{language}, axe"] = complaints(page)

    assert {place: each for place, each in found.items() if each} == {}


IN_EVERY_LANGUAGE = (
    LIST,
    WINDOW,
    f"{WINDOW}?mapping=new",
    f"{WINDOW}/connection",
    f"{WINDOW}/mappings/1/options",
    f"{WINDOW}/mappings/1/test",
    f"{WINDOW}/badges",
    f"{WINDOW}/badges/1",
    f"{WINDOW}/badges/1/revoke",
    f"{WINDOW}/badges/1/correct",
    f"{WINDOW}/badges/retry",
    f"{WINDOW}/backfills/1",
    f"{WINDOW}/errors",
    f"{WINDOW}/activity",
    f"{WINDOW}/remove",
)


@pytest.mark.parametrize("width", [1200, 390])
def test_no_word_of_a_status_is_broken(
    make_site: MakeSite, open_page: OpenPage, width: int
) -> None:
    """The German button beside it is longer than the English one."""
    site = make_site(CREDLY_LANGUAGE="de")
    site.fill()
    size = {"width": width, "height": 800}
    page = open_page(site, f"{WINDOW}/badges", viewport=size)
    state = page.locator("tbody .credly-state")
    expect(state).to_have_text("Fehlgeschlagen")
    box = state.bounding_box()
    assert box is not None
    assert box["height"] < 40


def test_the_expiry_is_shown_while_it_is_typed(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.fill()
    page = open_page(site, f"{WINDOW}/mappings/1/options")
    preview = page.locator("#credly-preview")
    wait_for_htmx(page)
    expect(page.get_by_label("Number of months")).to_be_hidden()
    page.get_by_label("Expiry").select_option("months")
    page.get_by_label("Number of months").fill("0")
    expect(preview).to_have_text("Enter a number of months from 1 to 600.")
    page.get_by_label("Number of months").press_sequentially("12", delay=20)
    page.get_by_label("Number of months").fill("12")
    expect(preview).to_contain_text("A badge earned today expires on")
    page.get_by_label("Expiry").select_option("never")
    expect(preview).to_be_empty()
    click(page, "Save options")

    expect_said(page, "Options saved")
    expect(page.locator("#credly-mapping-1")).to_contain_text("Never expires")


# Keyboard


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")

        if target.evaluate("e => e === document.activeElement"):
            return

    raise AssertionError(f"{target} is not reached by Tab")


@pytest.mark.parametrize("way", WITH_HTMX)
def test_the_keyboard_is_enough(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    page = open_page(site)
    press, type_ = page.keyboard.press, page.keyboard.type

    # Connect: a refused try, and a right one
    tab_to(page, page.get_by_role("link", name="Set Up Credly"))
    press("Enter")
    # Tabs would go to the page that is left, and be used up there.
    expect_title(page, "Credly Integration")
    tab_to(page, page.get_by_label("Organization ID"))
    type_(site.credly.organization_id)
    tab_to(page, page.get_by_label("Client ID"))
    type_(site.credly.client_id)
    tab_to(page, page.get_by_label("Client Secret"))
    type_("not-the-secret")
    press("Enter")
    expect(page.get_by_role("alert")).to_be_focused()
    tab_to(page, page.get_by_label("Client Secret"))
    type_(site.credly.client_secret)
    press("Enter")
    expect_said(page, "Connected to Credly.")

    # Add a mapping
    tab_to(page, page.get_by_label("Course or learning path"))
    type_("Python 101")
    press("Tab")
    type_("Python Badge")
    press("Tab")
    press("Enter")
    change = page.get_by_role("link", name="Change mapping for Python 101")
    expect(change).to_be_focused()
    assert site.mappings() == [("Python 101", "Python Badge")]

    # Open a row and close it
    add = page.get_by_role("link", name="Add a mapping")
    tab_to(page, add)
    press("Enter")
    expect(page.get_by_label("Course or learning path")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="Cancel"))
    press("Enter")
    expect(add).to_be_focused()

    # Open the mapping and close it
    for _ in range(3):
        press("Shift+Tab")

    expect(change).to_be_focused()
    press("Enter")
    expect(page.get_by_label("Course or learning path")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="Cancel"))
    press("Enter")
    expect(change).to_be_focused()

    # Remove it and take that back
    press("Tab")
    press("Tab")
    press("Enter")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    press("Enter")
    expect(change).to_be_focused()
    assert site.mappings() == [("Python 101", "Python Badge")]

    # The dialog
    opener = page.locator("#credly-remove-opener")
    dialog = page.get_by_role("dialog")
    tab_to(page, opener)
    press("Enter")
    expect(dialog.get_by_text("Cancel")).to_be_focused()
    press("Enter")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    press("Enter")
    expect(dialog).to_be_visible()
    press("Escape")
    expect(opener).to_be_focused()
    assert site.is_connected()
    press("Enter")
    expect(dialog.get_by_text("Cancel")).to_be_focused()
    press("Tab")
    press("Enter")
    expect_said(page, "Credly was removed.")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_member_accepts_a_badge_by_the_keyboard_and_without_scripts(
    make_site: MakeSite, open_page: OpenPage, watches: list[Watch], scripts: bool
) -> None:
    site = make_site()
    site.reward()
    page = open_page(site, "/me", java_script_enabled=scripts)
    asked: list[tuple[str, str | None]] = []

    def answer(route: Route) -> None:
        asked.append((route.request.url, route.request.headers.get("referer")))
        route.fulfill(body="<title>Credly</title>", content_type="text/html")

    page.context.route("https://www.credly.com/**", answer)
    accept = page.get_by_role("link", name="Accept your badge: Python Badge")

    for _ in range(20):
        page.keyboard.press("Tab")

        if accept.and_(page.locator(":focus")).count():
            break

    page.keyboard.press("Enter")
    expect(page).to_have_title("Credly")

    ((url, referrer),) = asked
    assert url == f"https://www.credly.com/badges/{site.credly.badges[0]['id']}/accept"
    assert referrer is None
    (watch,) = watches
    assert watch.problems == [f"request to {url}"]
    watch.problems.clear()


def test_tab_stays_in_the_dialog(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site()
    site.connect()
    page = open_page(site)
    with_the_dialog(page)
    reached = set()

    for _ in range(6):
        page.keyboard.press("Tab")
        reached.add(focused(page))

    # Once around it passes the browser's own buttons, which is BODY to a page.
    assert {each for each in reached if not each.startswith("BODY")} == {
        "A Cancel",
        "BUTTON Remove",
    }


def test_a_small_dialog_is_read_from_its_start(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    page = open_page(site, LIST, viewport={"width": 360, "height": 500})
    click(page, "Remove Credly", "link")
    dialog = page.get_by_role("dialog")

    expect(dialog.get_by_role("heading")).to_be_in_viewport(ratio=1)
    expect(dialog.get_by_text("Cancel")).to_be_in_viewport(ratio=1)
    expect(dialog.get_by_text("Cancel")).to_be_focused()


def test_the_secret_can_be_shown(make_site: MakeSite, open_page: OpenPage) -> None:
    page = open_page(make_site(), WINDOW)
    secret = page.get_by_label("Client Secret")
    secret.fill("typed")
    click(page, "Show")

    expect(secret).to_have_attribute("type", "text")
    expect(page.get_by_role("button", name="Show", pressed=True)).to_be_visible()

    click(page, "Show")

    expect(secret).to_have_attribute("type", "password")
    expect(secret).to_have_value("typed")


@pytest.mark.parametrize("way", WITH_HTMX)
def test_the_secret_can_be_shown_after_an_error_too(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    page = open_page(make_site(**WAYS[way]), WINDOW)
    show = page.get_by_role("button", name="Show")
    secret = page.get_by_label("Client Secret")

    for _ in range(2):
        expect(show).to_have_count(1)
        secret.fill("typed")
        show.click()
        expect(secret).to_have_attribute("type", "text")
        click(page, "Connect")
        expect(page.get_by_role("alert")).to_be_focused()
        expect(secret).to_have_attribute("type", "password")
        # As does whatever is put into the page later on.
        page.locator(".credly").evaluate("e => e.append(document.createElement('p'))")


def test_the_script_speaks_the_language_of_the_page(
    make_site: MakeSite, open_page: OpenPage, tmp_path: pathlib.Path
) -> None:
    site = make_site()
    write_catalogue(tmp_path, "de", german)
    speaking("de", tmp_path)(site.host.app, site.host.db)
    page = open_page(site, WINDOW)

    expect(page.get_by_role("button", name="Zeigen")).to_be_visible()


def test_the_organization_id_can_be_copied(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    permissions = ["clipboard-read", "clipboard-write"]
    page = open_page(site, WINDOW, permissions=permissions)
    click(page, "Copy Organization ID")

    expect_said(page, "Copied.")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == site.credly.organization_id


def test_a_clipboard_that_refuses_is_said(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    page = open_page(site, "/login")
    page.add_init_script(
        "navigator.clipboard.writeText = () => Promise.reject(new Error('No'))"
    )
    page.goto(WINDOW)
    click(page, "Copy Organization ID")

    expect_said(page, "Copying failed. Select the text and copy it yourself.")


@pytest.mark.parametrize("way", WITH_HTMX)
def test_a_page_that_stays_open_says_that_a_pause_is_over(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    site.pause()
    page = open_page(site, "/login")
    page.clock.install()
    page.goto(WINDOW)
    banner = page.get_by_role("heading", name="Issuance paused")
    expect(banner).to_be_visible()

    site.end_pause()
    page.clock.run_for(31_000)
    expect(banner).to_have_count(0)


def test_times_are_the_readers(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site()
    site.connect()
    page = open_page(site, WINDOW, timezone_id="Asia/Kathmandu")
    at = page.locator(".credly-facts time").first
    saved = dt.datetime.fromisoformat(at.get_attribute("datetime") or "")
    there = saved.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=45)))

    expect(at).to_contain_text(f"{there:%-I:%M}")
    expect(at).to_have_attribute("title", f"{saved:%-d %b %Y, %H:%M} UTC")


# Two clicks, and ways back


@pytest.mark.parametrize("way", WAYS)
def test_a_double_click_acts_once(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    page = open_page(site, WINDOW, java_script_enabled=way != "no-javascript")
    posts: list[str] = []
    page.on("request", lambda each: each.method == "POST" and posts.append(each.url))

    fill_in(page, site.credly)
    page.get_by_role("button", name="Connect").dblclick()
    expect_said(page, "Connected to Credly.")
    choose(page, "Python 101", "Python Badge")
    page.get_by_role("button", name="Save mapping").dblclick()
    expect(rows(page)).to_have_count(1)
    assert site.mappings() == [("Python 101", "Python Badge")]

    if way in WITH_HTMX:
        assert len(posts) == 2

    page.get_by_role("button", name="Remove mapping for Python 101").dblclick()
    expect(rows(page)).to_have_count(0)
    assert site.mappings() == []

    click(page, "Remove Credly", "link")
    page.get_by_role("button", name="Remove", exact=True).dblclick()
    expect_said(page, "Credly was removed.")
    assert not site.is_connected()


def test_every_url_is_a_whole_page(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site()
    site.connect()
    number = site.map()
    page = open_page(site)
    paths = [
        WINDOW,
        f"{WINDOW}?mapping=new",
        f"{WINDOW}?mapping={number}",
        f"{WINDOW}/connection",
        f"{WINDOW}/mappings/new",
        f"{WINDOW}/mappings/{number}/row",
        f"{WINDOW}/errors",
        f"{WINDOW}/remove",
    ]

    def whole() -> None:
        expect(page.locator("head > link[rel=stylesheet]")).to_have_count(1)
        expect(page.locator("h1")).to_have_count(1)

    for path in paths:
        page.goto(path)
        whole()

    page.reload()
    whole()

    for _ in paths[1:]:
        page.go_back()
        whole()

    for _ in paths[1:]:
        page.go_forward()
        whole()


@pytest.mark.parametrize("way", WITH_HTMX)
def test_back_after_a_swap_is_a_whole_page(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    page = open_page(site, WINDOW)
    choose(page, "Python 101", "Python Badge")
    click(page, "Save mapping")
    expect(rows(page)).to_have_count(1)
    click(page, "Integrations", "link")
    expect_title(page, "Integrations")
    page.go_back()
    expect_title(page, "Credly Integration")
    expect(rows(page)).to_have_count(1)
    page.go_forward()
    expect_title(page, "Integrations")
    page.go_back()
    page.reload()
    expect(rows(page)).to_have_count(1)
    click(page, "Add a mapping", "link")
    expect(page.locator(".credly-editing")).to_have_count(1)


@pytest.mark.parametrize("way", WITH_HTMX)
def test_an_expired_session_leads_to_the_login(
    make_site: MakeSite,
    open_page: OpenPage,
    watches: list[Watch],
    way: str,
) -> None:
    signed_in = [True]
    site = make_site(
        **WAYS[way], is_admin=lambda: bool(signed_in) or redirect("/login")
    )
    site.connect()
    page = open_page(site, WINDOW)
    watches[0].statuses.add(401)
    signed_in.clear()
    page.get_by_text("Add a mapping", exact=True).click()

    expect(page).to_have_title("Log in")
    expect(page).to_have_url(f"{site.address}/login")


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_permission_is_said(
    make_site: MakeSite,
    open_page: OpenPage,
    watches: list[Watch],
    way: str,
) -> None:
    allowed = [True]
    site = make_site(**WAYS[way], is_admin=lambda: bool(allowed))
    site.connect()
    page = open_page(
        site,
        WINDOW,
        java_script_enabled=way != "no-javascript",
        viewport={"width": 1200, "height": 300},
    )
    watches[0].statuses.add(403)

    # A poll that is refused
    if way in WITH_HTMX:
        site.map(COURSES[1])
        site.credly.posts_allowed = 4
        site.complete("5", drains=0, course_id="sql")
        page.goto("/login")
        page.clock.install()
        page.goto(f"{WINDOW}/badges/1")
        allowed.clear()
        page.clock.run_for(10_000)
        expect_said(page, "You do not have access to this page.")
        expect(page.get_by_text("Queued").first).to_be_visible()
        allowed.append(True)
        page.clock.run_for(4_000)
        expect(page.locator("#credly-flash")).to_be_empty()
        page.goto(f"{WINDOW}?mapping=new")

    # A form that is refused
    choose(page, "Python 101", "Python Badge")
    allowed.clear()
    page.get_by_text("Save mapping", exact=True).click()
    expect(page.get_by_text("You do not have access to this page.")).to_be_visible()
    allowed.append(True)

    if way in WITH_HTMX:
        expect_said(page, "You do not have access to this page.")
        expect(page.locator("#credly-flash")).to_be_in_viewport()
        click(page, "Save mapping")
        expect_said(page, "Mapping saved: Python 101 to Python Badge.")


def fulfill(route: Route, **answer: t.Any) -> None:
    route.fulfill(**answer)


@pytest.mark.parametrize("way", WITH_HTMX)
def test_a_failing_server_leaves_the_page_as_it_was(
    make_site: MakeSite,
    open_page: OpenPage,
    watches: list[Watch],
    way: str,
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    page = open_page(site, WINDOW)
    (watch,) = watches
    choose(page, "SQL basics", "Python Badge")
    answer = "<h1>Internal Server Error</h1>"
    path = "**/credly/mappings"

    # Also of what stands before the pages, such as a limit of requests or a firewall.
    for status in (500, 403, 422, 429):
        watch.statuses.add(status)
        page.route(path, functools.partial(fulfill, status=status, body=answer))
        page.get_by_text("Save mapping", exact=True).click()

        expect_said(page, "Something went wrong. Nothing was changed. Try again.")
        expect(page.get_by_text("Internal Server Error")).to_have_count(0)
        expect(page.get_by_label("Course or learning path")).to_have_value("course:sql")

        page.unroute_all()
        page.evaluate("document.getElementById('credly-flash').replaceChildren()")

    page.route(path, lambda route: route.abort())
    page.get_by_text("Save mapping", exact=True).click()

    expect_said(page, "No connection to the server. Try again.")
    assert watch.problems != []
    assert all("ERR_FAILED" in each or "htmx" in each for each in watch.problems)
    watch.problems.clear()

    # What was said of it does not outlast it.
    page.unroute_all()
    click(page, "Add a mapping", "link")
    expect(page.locator(".credly-editing")).to_have_count(2)
    expect(page.locator("#credly-flash")).to_be_empty()
    page.get_by_role("button", name="Save mapping").first.click()
    expect(rows(page)).to_have_count(1)


def test_an_outdated_page_keeps_what_was_chosen(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    page = open_page(site, WINDOW)
    choose(page, "SQL basics", "Python Badge")
    page.context.clear_cookies()
    click(page, "Save mapping")

    said = page.get_by_text("This page has expired. Please submit the form again.")
    expect(said).to_be_visible()
    click(page, "Save mapping")
    expect(rows(page)).to_have_count(1)
    assert site.mappings() == [("SQL basics", "Python Badge")]


def test_what_was_removed_elsewhere_is_said(
    make_site: MakeSite, open_page: OpenPage
) -> None:
    site = make_site()
    site.connect()
    site.map()
    page = open_page(site, WINDOW)

    with site.context():
        accounts.remove(site.host.state)

    click(page, "Change mapping for Python 101", "link")
    expect_said(page, "Credly is no longer connected.")
    expect(page.get_by_role("button", name="Connect")).to_be_visible()


# Foreign text

HOSTILE = {
    "tags": '<img src=x onerror=alert(1)>"><a hx-get="/x">',
    "direction": "\u202egnihtyna\u202e and \u2067more",
    "length": "x" * 300,
    "words": "A very long name of a course" + " and of its badge" * 16,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_foreign_names_are_shown_as_text(
    make_site: MakeSite, open_page: OpenPage, name: str
) -> None:
    kinds: list[t.Any] = ["course", "learning_path"]
    courses = [Course(id=kind, title=name, kind=kind) for kind in kinds]
    site = make_site(courses=lambda: courses, CREDLY_PLATFORM_NAME=name)
    template_id = site.credly.add_template(name)
    site.connect()
    site.map(courses[0], template_id)
    member = Member("7", "x" * 240 + "@example.org", name[:100], name[:100])
    site.credly.fail("issue", times=2, status=422, body={"data": {"message": name}})
    site.complete("7", 2, member=member, course_id="course")
    page = open_page(site, WINDOW)

    def check_widths() -> None:
        for width in (1200, 320):
            set_look(page, width=width)
            assert overhang(page) == []

    def check(row: Locator) -> None:
        expect(row.locator("bdi")).to_have_text([clean(name, 500), clean(name, 255)])
        assert page.locator("img[onerror], img[src=x], [hx-get='/x']").count() == 0
        check_widths()

    check(rows(page).first)
    click(page, "Add a mapping", "link")
    row = page.locator(".credly-editing")
    row.get_by_label("Course or learning path").select_option(
        "learning_path:learning_path"
    )
    row.get_by_label("Credly badge template").select_option(template_id)
    click(page, "Save mapping")
    expect(rows(page)).to_have_count(2)
    expect_said(page, "Mapping saved: ")
    check(rows(page).last)
    rows(page).last.get_by_role("link", name="Change mapping for").click()
    expect(page.locator(".credly-editing")).to_have_count(1)
    rows(page).first.get_by_role("button").click()
    expect(page.locator(".credly-removed")).to_contain_text(clean(name, 500))
    check_widths()


# The ledger, and long lists


@pytest.mark.parametrize("way", WAYS)
def test_an_admin_finds_and_retries_a_failed_badge(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.credly.posts_allowed = 4
    site.connect()
    site.map()
    site.complete("1")
    site.fail("2")
    page = open_page(site, WINDOW, java_script_enabled=way != "no-javascript")

    # From the error log to the badge
    page.get_by_role("row", name="Example refusal").get_by_role("link").click()
    expect_title(page, "Badge 2")
    expect(page.get_by_role("region", name="Requests to Credly")).to_contain_text(
        "Example refusal"
    )
    click(page, "Badges", "link")
    expect(page.locator("tbody tr")).to_have_count(2)

    # Filters are in the address
    page.get_by_label("Status").select_option(label="Failed")
    click(page, "Apply")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "status=failed" in page.url
    page.reload()
    expect(page.get_by_label("Status")).to_have_value("failed")

    # Retry
    page.clock.install()
    page.reload()
    page.get_by_role("button", name="Retry the badge of").click()
    expect(page.get_by_text("The badge is queued again.")).to_be_visible()

    with site.context():
        site.host.drain()

    if way in WITH_HTMX:
        state = page.locator("tbody .credly-state")
        expect(state).to_have_text("Queued")
        expect(state).to_be_focused()
        page.clock.run_for(4_000)
        expect(state).to_have_text("Issued")
        expect(state).to_be_focused()
        expect_said(page, "Issued")

    click(page, "Clear filters", "link")
    expect(page.locator("tbody").get_by_text("Issued", exact=True)).to_have_count(2)
    assert len(site.credly.badges) == 2


@pytest.mark.parametrize("way", WITH_HTMX)
def test_a_badge_that_settles_leaves_the_focus_where_it_is(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.credly.posts_allowed = 4
    site.connect()
    site.map()
    site.fail("2")
    page = open_page(site, "/login")
    page.clock.install()
    page.goto(f"{WINDOW}/badges")
    page.get_by_role("button", name="Retry the badge of").click()
    state = page.locator("tbody .credly-state")
    expect(state).to_be_focused()
    # htmx is done with the answer to the Retry.
    expect(page.locator(".htmx-settling, .htmx-added")).to_have_count(0)
    search = page.get_by_label("Name, e-mail or member id")
    search.press_sequentially("Ada")

    with site.context():
        site.host.drain()

    page.clock.run_for(4_000)
    expect(state).to_have_text("Issued")
    expect_said(page, "Issued")
    expect(search).to_be_focused()


@pytest.mark.parametrize("way", WAYS)
def test_an_admin_asks_what_became_of_a_badge(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    site.complete("1")
    site.complete("2")
    page = open_page(site, "/login", java_script_enabled=way != "no-javascript")
    page.clock.install()
    page.goto("/integrations/")
    page.get_by_role("link", name="2 issued, 2 not yet accepted").click()
    expect_title(page, "Issued badges")
    at_credly = page.get_by_label("At Credly")
    expect(at_credly).to_have_value("pending")
    expect(page.locator("tbody tr")).to_have_count(2)
    site.credly.accept(site.credly.badges[-1]["id"])
    page.locator("tbody tr").first.get_by_role("link").click()
    expect_title(page, "Badge 2")
    click(page, "Check now")
    expect(page.get_by_text("Checking the badge at Credly")).to_be_visible()
    expect(page.get_by_text("Checking at Credly…")).to_be_visible()
    activity = page.get_by_role("region", name="Activity")
    expect(activity).to_contain_text("Check badge 2 at Credly")
    back = page.get_by_role("link", name="Badges", exact=True)

    if way in WITH_HTMX:
        # What stays has the focus still.
        refresh = page.get_by_role("link", name="Refresh")
        refresh.focus()
        page.clock.run_for(4_000)
        expect(page.locator(".htmx-added, .htmx-settling")).to_have_count(0)
        expect(refresh).to_be_focused()
        back.focus()

    with site.context():
        jobs.poll()

    if way in WITH_HTMX:
        page.clock.run_for(4_000)
        expect(page.locator("[data-became=accepted]")).to_be_visible()
        expect_said(page, "Accepted")
        expect(back).to_be_focused()

    back.click()
    at_credly.select_option(label="Accepted")
    click(page, "Apply")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody")).to_contain_text("Accepted")


@pytest.mark.parametrize("way", WAYS)
def test_an_admin_corrects_a_badge_and_revokes_it(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    site.add_templates()
    site.complete("1")
    page = open_page(
        site, f"{WINDOW}/badges/1", java_script_enabled=way != "no-javascript"
    )
    click(page, "Correct…", "link")
    expect_title(page, "Correct badge")

    # Of many templates some are searched, and what was typed stays.
    page.get_by_label("Last name").fill("Lovelace")
    page.get_by_label("Search badge templates").fill("299")
    found = page.get_by_label("Credly badge template").get_by_role("option")

    if way not in WITH_HTMX:
        click(page, "Search badge templates")

    # "Select…", the one that is chosen, and the one that was found
    expect(found).to_have_count(3)
    expect(page.get_by_label("Last name")).to_have_value("Lovelace")
    page.get_by_label("Last name").press("Enter")
    expect_title(page, "Changes")
    expect(page.get_by_role("row", name="Last name")).to_contain_text("Lovelace")
    click(page, "Back")
    expect(page.get_by_label("Last name")).to_have_value("Lovelace")
    click(page, "Continue")
    click(page, "Replace the badge")
    expect_title(page, "Badge 2")
    expect_said(page, "It replaces badge 1")

    with site.context():
        site.host.drain()

    page.goto(f"{WINDOW}/badges/2")
    click(page, "Revoke…", "link")
    expect_title(page, "Revoke the badge")
    page.get_by_label("Reason").fill("Ask dan@example.org.")
    click(page, "Revoke")
    expect(page.get_by_label("Reason")).to_have_value("Ask dan@example.org.")
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    page.get_by_label("Reason").fill("Not earned.")
    page.get_by_label("Do not notify the member").check()
    click(page, "Revoke")
    expect_title(page, "Badge 2")
    expect_said(page, "The revocation is queued.")

    with site.context():
        site.host.drain()

    page.goto(f"{WINDOW}/badges/2")
    expect(page.get_by_role("region", name="Status")).to_contain_text("Not earned.")
    (old, new) = site.credly.badges
    assert (new["state"], new["issued_to_last_name"]) == ("revoked", "Lovelace")
    assert old["replacement_badge_id"] == new["id"]


@pytest.mark.parametrize("way", WAYS)
def test_members_who_completed_before_get_their_badge(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    page = open_page(site, "/login", java_script_enabled=way != "no-javascript")
    page.clock.install()
    page.goto(WINDOW)
    click(page, "Earlier completions of Python 101", "link")
    expect_title(page, "Earlier completions")
    click(page, "Issue 4 badges")
    expect(page.get_by_text("Finding members")).to_be_visible()

    with site.context():
        jobs.backfill()
        site.host.drain()

    if way in WITH_HTMX:
        page.clock.run_for(3_000)
        expect_said(page, "Finished: 4 issued, 0 failed.")
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    else:
        click(page, "Refresh", "link")

    expect(page.locator("#credly-progress")).to_contain_text(
        "Finished: 4 issued, 0 failed."
    )
    assert len(site.credly.badges) == 4


@pytest.mark.parametrize("way", WAYS)
def test_many_badges_are_revoked_by_the_keyboard(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    site.issue_to_earlier()
    page = open_page(
        site, f"{WINDOW}/backfills/1", java_script_enabled=way != "no-javascript"
    )
    tab_to(page, page.locator("#credly-undo"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Reason"))
    page.keyboard.type("They were issued by mistake.")

    for name in ("tell_pending", "tell_accepted"):
        tab_to(page, page.locator(f"[name={name}]").first)
        page.keyboard.press("Space")

    tab_to(page, page.locator("#credly-number"))
    page.keyboard.type("4")
    page.keyboard.press("Enter")
    expect(page.locator("#credly-progress")).to_be_visible()

    with site.context():
        jobs.undo()
        site.host.drain()

    states = [each["state"] for each in site.credly.badges]
    assert sorted(states) == ["pending"] + ["revoked"] * 4


@pytest.mark.parametrize("decision", ["revoke", "keep"])
@pytest.mark.parametrize("scripts", [True, False])
def test_withdrawn_completions_are_decided_by_the_keyboard_and_without_scripts(
    make_site: MakeSite, open_page: OpenPage, decision: str, scripts: bool
) -> None:
    site = make_site()
    site.connect()
    site.withdraw()
    page = open_page(site, f"{WINDOW}/badges", java_script_enabled=scripts)
    tab_to(page, page.get_by_role("link", name="Decide…"))
    page.keyboard.press("Enter")
    expect_title(page, "Withdrawn completions")

    if decision == "revoke":
        tab_to(page, page.get_by_label("Number of badges"))
        page.keyboard.type("26")

    tab_to(page, page.locator(f"[value={decision}]"))
    page.keyboard.press("Enter")
    expect_title(page, "Issued badges")

    with site.context():
        site.host.drain()

    states = {each["state"] for each in site.credly.badges}
    assert states == {"revoked" if decision == "revoke" else "pending"}


@pytest.mark.parametrize("way", WITH_HTMX)
def test_a_pause_that_begins_is_said_beside_the_progress(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.connect()
    site.map()
    site.begin_backfill()
    page = open_page(site, "/login")
    page.clock.install()
    page.goto(f"{WINDOW}/backfills/1")
    expect(page.get_by_text("0 of 4 done")).to_be_visible()

    site.switch_off()
    page.clock.run_for(3_000)
    expect(page.get_by_role("heading", name="Issuing is paused")).to_be_visible()
    resume = page.get_by_role("button", name="Resume issuing")
    resume.focus()

    with page.expect_response("**/backfills/1?said=0*"):
        page.clock.run_for(3_000)

    expect(resume).to_be_focused()


@pytest.mark.parametrize("way", WAYS)
def test_a_long_list_is_searched(
    make_site: MakeSite, open_page: OpenPage, way: str
) -> None:
    site = make_site(**WAYS[way])
    site.fill_up()
    page = open_page(
        site, f"{WINDOW}?mapping=new", java_script_enabled=way != "no-javascript"
    )
    row = page.locator(".credly-editing")
    row.get_by_label("Course or learning path").select_option(label="SQL basics")
    box = row.get_by_label("Search badge templates").first
    box.press_sequentially("badge 12")

    if way not in WITH_HTMX:
        click(page, "Search badge templates")

    expect(row.get_by_text("10 found.")).to_be_visible()
    choose(page, "SQL basics", "Badge 123")
    click(page, "Save mapping")
    expect_said(page, "Mapping saved: SQL basics to Badge 123.")
    assert site.mappings() == [("SQL basics", "Badge 123")]


def test_tables_are_exported(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site()
    site.fill()

    for place, name in (("badges", "credly-badges"), ("errors", "credly-error-log")):
        page = open_page(site, f"{WINDOW}/{place}")

        with page.expect_download() as download:
            click(page, "Export as CSV", "link")

        assert download.value.suggested_filename == f"{name}.csv"
        assert "member-7@example.org" in download.value.path().read_text("utf-8-sig")


def test_an_admin_tries_a_mapping(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site()
    site.connect()
    site.map()
    page = open_page(site, WINDOW)
    click(page, "Test mapping for Python 101", "link")
    expect_title(page, "Issue a test badge")
    page.get_by_label("E-mail address").fill("admin@example.org")
    page.get_by_label("First name").fill("Grace")
    page.get_by_label("Last name").fill("Example")
    click(page, "Issue test badge")
    expect_said(page, "The test badge is queued.")

    with site.context():
        site.host.drain()

    page.reload()
    expect(page.get_by_text("Issued", exact=True).first).to_be_visible()
    assert [badge["recipient_email"] for badge in site.credly.badges] == [
        "admin@example.org"
    ]


def test_pictures_for_the_readme(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot
) -> None:
    """``make docs`` keeps them."""
    site = make_site()
    site.connect()

    for course in COURSES:
        name = f"{course.title} badge"
        template_id = site.credly.add_template(name, image=False)

        with site.context():
            accounts.sync_templates(site.host.state)

        site.map(course, template_id)

    for number, first_name in enumerate(("Ada", "Grace", "Alan"), 1):
        site.complete(
            str(number),
            member=Member(
                str(number), f"{first_name.lower()}@example.org", first_name, "Example"
            ),
        )

    site.fail("4")
    page = open_page(site, WINDOW)
    expect(page.locator("time[title]").first).to_be_visible()
    shoot(page, "window")
    page.goto(f"{WINDOW}/badges")
    expect(page.locator("tbody tr")).to_have_count(4)
    shoot(page, "badges")
