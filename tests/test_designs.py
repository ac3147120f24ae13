"""Our pages look the same in the designs of others: in CSS frameworks and in a sheet
that has something to say about everything, light and dark, narrow and wide, loaded
before our own sheet or after it.

``CREDLY_TEST_SCREENSHOTS`` names a folder for pictures.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
import typing as t

import pytest
from playwright.sync_api import Page
from playwright.sync_api import Route
from test_browser import SCREENS

from tests.support.browser import HOST_LAYOUT
from tests.support.browser import HTMX_2
from tests.support.browser import HTMX_4
from tests.support.browser import make_site as make_site
from tests.support.browser import MakeSite
from tests.support.browser import open_page as open_page
from tests.support.browser import OpenPage
from tests.support.browser import Shoot
from tests.support.browser import shoot as shoot
from tests.support.browser import wait_for_htmx
from tests.support.browser import watches as watches
from tests.support.browser import WINDOW

HERE = pathlib.Path(__file__).parent
VENDOR = HERE / "vendor"

SHEETS = {
    "bare": None,
    "bootstrap": VENDOR / "bootstrap-5.3.8.min.css",
    "bulma": VENDOR / "bulma-1.0.4.min.css",
    "pico": VENDOR / "pico-2.1.1.min.css",
    "tailwind-3": VENDOR / "tailwind-preflight-3.4.18.css",
    "tailwind-4": VENDOR / "tailwind-preflight-4.3.5.css",
    "hostile": HERE / "designs.css",
}

# What is compared has the same room and the same letters in each design.
ROOM = """
html #room#room {
  position: absolute !important;
  inset: 0 0 auto 0 !important;
  display: block !important;
  width: auto !important;
  max-width: none !important;
  margin: 0 !important;
  padding: 0 !important;
  border: 0 !important;
  opacity: 1 !important;
  float: none !important;
  font-family: sans-serif !important;
}
html, body {
  min-width: 0 !important;
  max-width: 100vw !important;
  margin: 0 !important;
  padding: 0 !important;
  border: 0 !important;
  transition: none !important;
}
"""

DARK = {
    "tailwind-3": "html.dark body { background: #111827; color: #f3f4f6; }",
    "tailwind-4": "html.dark body { background: #111827; color: #f3f4f6; }",
}
"""What a host with such a preflight writes itself."""

NOTHING_NEW = {
    *("activity-empty", "backfilling", "badges-empty", "connect", "connect-errors"),
    *("connect-too-often", "dialog", "errors", "list", "list-connected", "test"),
    *(
        "list-of-the-host",
        "list-removed",
        "list-removing",
        "member-empty",
        "retry",
        "revoke",
        "window",
    ),
    *("undo-of-earlier", "window-empty", "window-old-templates", "withdrawn"),
}
"""Screens of which every element stands in another one, too, in the same place."""

LOOKED_AT = [screen for screen in SCREENS if screen not in NOTHING_NEW]

LOOKS: list[tuple[int, t.Literal["light", "dark"]]] = [
    (1280, "light"),
    (1280, "dark"),
    (390, "light"),
]
"""Dark and narrow is both: the shapes of the one and the colours of the other."""

WAYS: list[dict[str, t.Any]] = [
    {"layout": HOST_LAYOUT, "script": HTMX_2},
    {"layout": HOST_LAYOUT, "script": HTMX_4},
    {"layout": HOST_LAYOUT},
    {},
]


@functools.cache
def text_of(design: str) -> str:
    """A sheet, as a browser gets it."""
    path = SHEETS.get(design)

    if path is None:
        return ROOM if design == "room" else ""

    text = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", path.read_text())

    # In a preflight, what a design leaves open
    if "tailwind" in design:
        text = re.sub(
            r"(?:--)?theme\(\s*[^,]+,\s*((?:[^()]|\([^()]*\))*?)\s*\)", r"\1", text
        )
        assert "theme(" not in text

    return text + DARK.get(design, "")


def answer_with(route: Route, body: str) -> None:
    route.fulfill(body=body, content_type="text/css")


def dress(page: Page, is_last: bool) -> None:
    """Give the page all the sheets. None of them is in force yet."""

    def answer(route: Route) -> None:
        (design,) = re.findall(r"/designs/(.+)\.css", route.request.url)
        answer_with(route, text_of(design))

    page.route("**/designs/*.css", answer)
    page.evaluate((HERE / "designs.js").read_text())
    page.evaluate(
        "([names, last]) => designs.load(names, last)", [list(SHEETS), is_last]
    )

    while not page.evaluate("designs.isLoaded()"):
        page.wait_for_timeout(20)

    # From here on the focus is shown, as to one who uses the keyboard.
    page.keyboard.press("Shift")


@pytest.mark.parametrize("screen", LOOKED_AT)
def test_a_screen_looks_the_same_in_every_design(
    make_site: MakeSite, open_page: OpenPage, shoot: Shoot, screen: str
) -> None:
    prepare, path, act = SCREENS[screen]
    number = list(SCREENS).index(screen)
    site = make_site(**WAYS[number % len(WAYS)])

    if prepare is not None:
        prepare(site)

    has_script = act is not None or number % 5 > 0
    page = open_page(site, path, java_script_enabled=has_script)
    wait_for_htmx(page)

    if act is not None:
        act(page)

    dress(page, is_last=number % 2 == 0)
    found = []

    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        found += page.evaluate(
            "given => designs.judge(...given)", [list(SHEETS), scheme, width]
        )

        if "CREDLY_TEST_SCREENSHOTS" in os.environ:
            for design in SHEETS:
                page.evaluate("given => designs.wear(...given)", [design, scheme])
                shoot(page, f"{screen}-{width}-{scheme}-{design}")

    # Not compared: the difference of long lists takes minutes to write.
    if found:
        pytest.fail("\n".join(found[:12]))


@pytest.mark.parametrize("path", [WINDOW, "/settings"])
def test_nothing_of_ours_is_seen_outside(
    make_site: MakeSite, open_page: OpenPage, path: str
) -> None:
    site = make_site(layout=HOST_LAYOUT)
    site.fill()
    page = open_page(site, path)
    dress(page, is_last=False)

    for design in SHEETS:
        page.evaluate("design => designs.wear(design, 'light')", design)
        assert page.evaluate("designs.leaks().slice(0, 3)") == []


def test_a_host_gives_its_own_colours(make_site: MakeSite, open_page: OpenPage) -> None:
    site = make_site(layout=HOST_LAYOUT)
    page = open_page(site, WINDOW)

    for name, place in (("root", ":root"), ("part", ".credly")):
        body = f"{place} {{ --credly-accent: rgb(1, 2, 3); }}"
        page.route(
            f"**/{name}.css",
            functools.partial(answer_with, body=body),
        )
        page.add_style_tag(url=f"{site.address}/{name}.css").evaluate(
            "e => { window.tag = e }"
        )
        button = page.locator(".credly-primary")
        colour = button.evaluate("e => getComputedStyle(e).backgroundColor")
        assert colour == "rgb(1, 2, 3)"
        page.evaluate("window.tag.remove()")
