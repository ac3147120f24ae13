"""A served host, a page of it in a real browser, and what an admin does there.

Playwright is imported where it is used, so that the tests beside it do without.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import contextlib
import datetime as dt
import os
import pathlib
import re
import threading
import typing as t
import uuid

import html5lib
import pytest
import redis
import rq
import sqlalchemy as sa
from conftest import COURSES
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask import render_template_string
from flask import Response
from flask import send_file
from flask_sqlalchemy import SQLAlchemy
from jinja2 import DictLoader
from werkzeug.serving import make_server
from werkzeug.serving import WSGIRequestHandler

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly import Course
from flask_credly import jobs
from flask_credly import Member
from flask_credly.errors import CredlyError
from flask_credly.issuing import notifier
from flask_credly.ledger import actions
from flask_credly.ledger import audit
from flask_credly.ledger import backfills
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import removing
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger import undos
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import Template
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from playwright.sync_api import Browser
    from playwright.sync_api import ConsoleMessage
    from playwright.sync_api import Dialog
    from playwright.sync_api import Locator
    from playwright.sync_api import Page
    from playwright.sync_api import Request
    from playwright.sync_api import Response as BrowserResponse

ROOT = pathlib.Path(__file__).parents[2]
HTMX_2 = ROOT / "tests/vendor/htmx-2.0.11.min.js"
HTMX_4 = ROOT / "static/vendor/htmx-4.0.1.min.js"

ORGANIZATION = "11111111-1111-4111-8111-111111111111"
LONG = "A name that is long, " * 3 + "Unbroken" * 8

PATIENCE = 30_000
"""Milliseconds. A machine under load may stand still for some seconds."""

LIST = "/integrations/"
WINDOW = "/integrations/credly"

# A careless one: what it sets for htmx must not reach our part of the page.
HOST_LAYOUT = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <meta name="htmx-config" content='{"includeIndicatorStyles": false}' />
    <link rel="icon" href="data:," />
    <title>{% block title %}{% endblock %}</title>
    SCRIPT
  </head>
  <body hx-boost="true" hx-target="#host" hx-confirm="Sure?">
    <p id="host">The host</p>
    <main>{% block content %}{% endblock %}</main>
  </body>
</html>"""

HOST_PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <link rel="icon" href="data:," />
    <title>Settings</title>
    {{ credly_assets() }}
  </head>
  <body>
    <main>
      <h1>Settings</h1>
      {{ credly_card() }}
    </main>
  </body>
</html>"""

MEMBERS_PAGE = HOST_PAGE.replace("credly_card()", 'credly_badges("1")').replace(
    "Settings", "My badges"
)

HOST_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data: https://images.credly.com; form-action 'self'"
)


class QuietHandler(WSGIRequestHandler):
    # A connection that the browser opened ahead of time and never used.
    timeout = 5

    def make_environ(self) -> WSGIEnvironment:
        # Werkzeug's server leaves a file open whose reader has hung up.
        return {**super().make_environ(), "wsgi.file_wrapper": read_whole}

    def log(self, type: str, message: str, *args: t.Any) -> None:
        pass


def read_whole(file: t.IO[bytes], block_size: int = 8192) -> list[bytes]:
    with file:
        return [file.read()]


def past_completions(
    course: Course, since: dt.datetime | None
) -> cabc.Iterator[tuple[Member, dt.datetime]]:
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    for number in range(20, 25):
        name = "Ada" if number > 20 else ""
        yield Member(str(number), f"{number}@example.org", name, "Example"), at


class Site:
    """A served host application and the Credly it talks to."""

    def __init__(self, host: Host, credly: CredlySimulator, address: str) -> None:
        self.host = host
        self.credly = credly
        self.address = address
        self.template_id = credly.add_template("Python Badge")

    @contextlib.contextmanager
    def context(self) -> cabc.Iterator[None]:
        """Give the test's side an application context and a fresh session."""
        with self.host.app.app_context():
            yield

    def connect(self) -> None:
        """Connect without the browser."""
        with self.context():
            accounts.connect(
                self.host.state,
                organization_id=self.credly.organization_id,
                client_id=self.credly.client_id,
                client_secret=self.credly.client_secret,
            )

    def map(self, course: Course = COURSES[0], template_id: str | None = None) -> int:
        """Map a course without the browser."""
        with self.context():
            return accounts.add_mapping(
                self.host.state, course, template_id or self.template_id
            ).id

    def mappings(self) -> list[tuple[str, str]]:
        with self.context():
            found = accounts.list_mappings(self.host.db.session, "default")
            return [(each.course_title, each.template.name) for each in found]

    def is_connected(self) -> bool:
        with self.context():
            return accounts.get(self.host.db.session, "default") is not None

    def complete(self, member_id: str, drains: int = 1, **given: t.Any) -> None:
        """Complete "Python 101" and let the worker's job run."""
        with self.context():
            self.host.complete(member_id, **given)
            self.host.drain(drains)

    def fail(self, member_id: str = "7") -> None:
        """Have a badge refused, and refused again."""
        body = {"data": {"message": "Example refusal"}, "metadata": None}
        self.credly.fail("issue", times=2, status=422, body=body)
        self.complete(member_id, drains=2)

    def bring_back(self) -> None:
        """Undo the removal of a mapping, with more badges than are restored at once."""
        mapping_id = self.map()

        with self.context(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrying, "PORTION", 2)

            for number in range(6):
                self.host.complete(f"waiting-{number}")

            accounts.remove_mapping(self.host.state, mapping_id)
            self.host.drain()
            accounts.add_mapping(
                self.host.state, COURSES[0], self.template_id, undo=True
            )
            taken = runs.take(self.host.state.engine, "retry")
            assert taken is not None
            assert retrying.step(self.host.state.engine, taken) == "more"

    def fill(self) -> None:
        """Connect, and have something of everything to see."""
        gone = Course(id="gone", title="A course that was deleted")
        old = self.credly.add_template("Badge of last year")
        self.credly.add_template("Data Badge")
        self.connect()
        self.map()
        self.map(COURSES[2], old)
        self.map(gone)
        self.credly.change_template(old, state="archived")

        with self.context():
            accounts.sync_templates(self.host.state)

        self.fail()

    def correct(self, row_id: int) -> None:
        """Correct a badge without the browser."""
        with self.context():
            row = self.host.rows()[row_id - 1]
            actions.correct(
                self.host.state.engine,
                "default",
                row_id,
                first_name="Ada",
                last_name="Lovelace",
                completed_at=row.completed_at,
                template_id=row.template_id,
                by="Grace Example",
            )
            self.host.drain()

    def reward(self) -> None:
        """Connect, and have a member with a badge of every kind."""
        self.connect()
        self.map()
        self.map(COURSES[1])
        at = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
        self.complete("1", completed_at=at)
        lives = [
            {"badge_name": "A badge with a very long name, " * 5 + "Unbroken" * 9},
            {"state": "none", "action": "issue", "badge_id": None, "accept_url": None},
            {"badge_state": "accepted", "public": True},
            {"badge_state": "accepted", "expires_at": at},
            {"badge_state": "rejected"},
            {"state": "revoked"},
        ]

        with self.context():
            (first,) = self.host.db.session.execute(
                sa.select(Issuance.__table__)
            ).mappings()

            for number, changes in enumerate(lives):
                badge_id = str(uuid.uuid4())
                page_url = f"https://www.credly.com/badges/{badge_id}"
                row = {
                    **first,
                    "course_id": f"course-{number}",
                    "badge_name": f"Badge {number}",
                    "badge_id": badge_id,
                    "page_url": page_url,
                    "accept_url": f"{page_url}/accept",
                    **changes,
                }
                row.pop("id")
                self.host.db.session.execute(sa.insert(Issuance), [row])

            self.host.db.session.commit()

    def fill_up(self) -> None:
        """Connect, and have more of everything than can be shown."""
        self.connect()
        self.add_templates()

    def add_templates(self) -> None:
        with self.context():
            self.host.db.session.execute(
                sa.insert(Template),
                [
                    {
                        "id": f"{number:08}-0000-4000-8000-000000000000",
                        "tenant": "default",
                        "name": f"Badge {number:03}",
                        "active": True,
                    }
                    for number in range(300)
                ],
            )
            self.host.db.session.commit()

    def act(self) -> None:
        """Do something of everything that is noted, in the browser's place."""
        with self.context():
            engine = self.host.state.engine
            audit.note_alone(
                engine, "default", "Grace Example", "connect", ORGANIZATION
            )
            audit.note_alone(engine, "default", "", "map", "Python 101 → Python Badge")
            audit.note_alone(engine, "default", audit.COMMAND_LINE, "retry all", "12")
            audit.note_alone(
                engine, "default", "Grace Example", "test", outcome="refused"
            )
            audit.note_alone(
                engine, "default", "Grace Example", "sync", outcome="failed"
            )
            audit.note_alone(engine, "default", LONG, "map", f"{LONG} → {LONG}")
            audit.note_alone(
                engine, "default", "Grace Example", "reconnect", ORGANIZATION, "begun"
            )

    def connect_too_often(self) -> None:
        with self.context():
            engine = self.host.state.engine

            for _ in range(20):
                audit.note_alone(
                    engine, "default", "", "connect", ORGANIZATION, "refused"
                )

    def remove(self) -> None:
        with self.context():
            accounts.remove(self.host.state, by="Grace Example")

    def begin_to_remove(self) -> None:
        """The same, with so many badges that a worker has to go on."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(removing, "PORTION", 0)
            self.remove()

    def switch_off(self) -> None:
        with self.context():
            gates.switch(self.host.state.engine, "default", on=False)

    def pause(self) -> None:
        """Run into the rate limit."""
        headers = {"Retry-After": "600"}
        self.credly.fail("issue", status=429, headers=headers)
        self.complete("8")

    def end_pause(self) -> None:
        with self.context():
            session = self.host.db.session
            session.execute(sa.update(Account).values(paused_until=None))
            session.commit()

    def lose_worker(self) -> None:
        with self.context():
            for each in rq.Worker.all(queue=notifier.web_queue(self.host.state)):
                each.register_death()

    def begin_backfill(self) -> None:
        with self.context():
            backfills.start(self.host.state.engine, "default", 1)
            jobs.backfill()

    def compare(self) -> None:
        """Compare with Credly, which has another status of a badge."""
        old = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        ages = {"recorded_at": old, "settled_at": old, "checked_at": old}

        with self.context():
            session = self.host.db.session
            session.execute(
                sa.update(Issuance)
                .where(Issuance.state == "issued")
                .values(badge_state="accepted", unsettled_until=None, **ages)
            )
            session.commit()
            comparisons.start(self.host.state.engine, "default")
            jobs.compare()

    def issue_to_earlier(self) -> None:
        """Issue the badges of a backfill, and one to another member."""
        self.complete("6")
        self.begin_backfill()

        with self.context():
            self.host.drain()

    def take_back(self) -> None:
        """Begin to take back what a backfill has issued: with one of them it is done,
        and another has failed.
        """
        selection = undos.Selection(undoes=1)

        with self.context():
            engine, session = self.host.state.engine, self.host.db.session
            found = undos.preview(session, "default", selection)
            session.rollback()
            undos.start(
                engine,
                "default",
                selection,
                number=found.number,
                reason="They were issued by mistake.",
                tell_pending=False,
                tell_accepted=True,
                by="Grace Example",
            )
            jobs.undo()
            self.credly.fail("revoke", times=2, status=422)
            self.host.drain(2)

    def withdraw(self, number: int = 26) -> None:
        """Have more completions withdrawn than are usual in an hour."""
        self.map()

        with self.context():
            (mapping,) = accounts.list_mappings(self.host.db.session, "default")
            self.host.db.session.rollback()
            options = Options(withdrawn="silent")
            accounts.change_options(self.host.state, mapping.id, options)

            for each in range(number):
                self.host.complete(str(each))

            self.host.drain()

            for each in range(number):
                completion_withdrawn.send(
                    self.host.app, member_id=str(each), course_id="py-101"
                )

            self.host.drain()

    def fail_to_sync(self) -> None:
        self.credly.fail("templates", status=503)

        with self.context(), pytest.raises(CredlyError):
            accounts.sync_templates(self.host.state)

    def expire(self) -> None:
        """Revoke the credentials, and let that be noticed."""
        self.credly.revoke_client()
        self.complete("9")


MakeSite = cabc.Callable[..., Site]
OpenPage = cabc.Callable[..., "Page"]


@pytest.fixture
def make_site(make_host: MakeHost, redis_url: str) -> cabc.Iterator[MakeSite]:
    """Serve a host application and a Credly over HTTP."""
    with contextlib.ExitStack() as stack:

        def make(
            layout: str | None = None,
            script: pathlib.Path | None = None,
            **given: t.Any,
        ) -> Site:
            def setup(app: Flask, db: SQLAlchemy) -> None:
                if layout is not None:
                    stand_in(app, layout, script)

                @app.after_request
                def keep(response: Response) -> Response:
                    if response.mimetype == "text/html":
                        markup.add(response.get_data(as_text=True))

                    return response

                @app.get("/settings")
                def settings() -> Response:
                    page = Response(render_template_string(HOST_PAGE))
                    page.headers["Content-Security-Policy"] = HOST_POLICY
                    return page

                @app.get("/me")
                def me() -> Response:
                    page = Response(render_template_string(MEMBERS_PAGE))
                    page.headers["Content-Security-Policy"] = HOST_POLICY
                    return page

                @app.get("/login")
                def login() -> str:
                    return "<title>Log in</title><link rel=icon href=data:,>Log in"

            credly = CredlySimulator()
            service = stack.enter_context(credly.serve())
            config = {
                "CREDLY_API_URL": service.api_url,
                "CREDLY_PLATFORM_NAME": "Gradual",
                "CREDLY_QUEUE": f"browser-{uuid.uuid4().hex}",
                "CREDLY_REDIS_URL": redis_url,
                "CREDLY_TOKEN_URL": service.token_url,
                **({"CREDLY_LAYOUT": "host.html"} if layout else {}),
            }
            host = make_host(
                setup=setup, past_completions=past_completions, **{**config, **given}
            )
            address = stack.enter_context(served(host.app))
            stack.enter_context(worker(host, redis_url))
            site = Site(host, credly, address)
            stack.callback(lambda: check(credly))
            return site

        def check(credly: CredlySimulator) -> None:
            assert credly.problems == []

        markup: set[str] = set()
        yield make

    for each in markup:
        check_markup(each)


def check_markup(text: str) -> None:
    """Parse a page, or a part of one, as strictly as a browser would not."""
    text = text.strip()
    parser = html5lib.HTMLParser(strict=True)
    row, end, rest = text.partition("</tr>")

    if text.startswith("<tr") and rest:
        # htmx takes a message apart from the row.
        check_markup(row + end)
        check_markup(rest)
        return

    if text.startswith("<!doctype"):
        root = parser.parse(text)
    else:
        container = "tbody" if text.startswith("<tr") else "main"
        root = parser.parseFragment(text, container=container)

    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))

    for each in root.iter():
        for name in ("for", "aria-controls", "aria-describedby", "aria-labelledby"):
            assert set((each.get(name) or "").split()) <= set(ids)


@contextlib.contextmanager
def served(app: Flask) -> cabc.Iterator[str]:
    server = make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler
    )
    # So that closing waits for the requests that are under way.
    t.cast(t.Any, server).daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()

    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def worker(host: Host, redis_url: str) -> cabc.Iterator[None]:
    """Register a worker, that the pages see one. The tests run the job in place."""
    with redis.Redis.from_url(redis_url) as connected:
        queue = rq.Queue(host.app.config["CREDLY_QUEUE"], connection=connected)
        registered = rq.Worker([queue], connection=connected)
        registered.register_birth()

        try:
            yield
        finally:
            registered.register_death()
            queue.delete()


def stand_in(app: Flask, layout: str, script: pathlib.Path | None) -> None:
    """Give the host a layout of its own, with its own htmx and a strict policy."""
    tag = '<script src="/htmx.js" defer></script>' if script else ""
    app.jinja_loader = DictLoader({"host.html": layout.replace("SCRIPT", tag)})

    @app.get("/htmx.js")
    def htmx() -> Response:
        assert script is not None
        return send_file(script)

    @app.after_request
    def add_policy(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = HOST_POLICY
        return response


PICTURES = "https://images.credly.com/"
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
    "AABJRU5ErkJggg=="
)
"""One pixel."""


class Watch:
    """Notes what must not happen on any page.

    :ivar statuses: What may be answered to a request. Chromium writes an error to the
        console for 400 and above; a form that is shown again is a 422, and a 429 where
        it was sent too often.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.statuses = {422, 429}
        self.problems: list[str] = []

    def observe(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        failed = re.match(
            r"Failed to load resource: the server responded with a status of (\d+)",
            message.text,
        )

        if failed and int(failed[1]) in self.statuses:
            return

        if message.type == "error" or "Content Security Policy" in message.text:
            self.problems.append(f"console: {message.text} at {message.location}")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"{dialog.type}: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.address, PICTURES, "data:")):
            self.problems.append(f"request to {request.url}")

    def _response(self, response: BrowserResponse) -> None:
        if response.status >= 400 and response.status not in self.statuses:
            self.problems.append(f"{response.status} from {response.url}")


@pytest.fixture
def watches() -> list[Watch]:
    return []


@pytest.fixture
def open_page(
    browser: Browser, make_site: MakeSite, watches: list[Watch]
) -> cabc.Iterator[OpenPage]:
    """Open a page in a fresh browser context. What must not happen fails the test at
    its end.
    """
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    contexts = []

    def open_(site: Site, path: str = LIST, **options: t.Any) -> Page:
        context = browser.new_context(
            base_url=site.address,
            **{
                "viewport": {"width": 1200, "height": 800},
                "locale": "en-GB",
                **options,
            },
        )
        contexts.append(context)
        context.route(f"{PICTURES}**", lambda route: route.fulfill(body=PICTURE))
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        watch = Watch(site.address)
        watch.observe(page)
        watches.append(watch)
        page.goto(path)
        return page

    yield open_

    for context in contexts:
        context.close()

    assert [each for watch in watches for each in watch.problems] == []


Shoot = cabc.Callable[["Page", str], None]


@pytest.fixture
def shoot(tmp_path: pathlib.Path) -> Shoot:
    """Keep a picture of a page, in the folder that ``CREDLY_TEST_SCREENSHOTS`` names
    if it is set.
    """
    folder = pathlib.Path(os.environ.get("CREDLY_TEST_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(page: Page, name: str) -> None:
        # To hide the caret, Playwright would leave a style attribute behind.
        page.screenshot(
            path=folder / f"{name}.png",
            full_page="dialog" not in name,
            caret="initial",
        )

    return shoot


# What an admin does


def fill_in(page: Page, credly: CredlySimulator, **changes: str) -> None:
    fields = {
        "Organization ID": credly.organization_id,
        "Client ID": credly.client_id,
        "Client Secret": credly.client_secret,
        **changes,
    }

    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)


def wait_for_htmx(page: Page) -> None:
    """Until htmx, if there is one, knows all that is on the page. A click before that
    loads a page: an admin gets the same, but a test may count on a swap.
    """
    from playwright.sync_api import expect

    page.wait_for_load_state()
    expect(page.locator(".htmx-added")).to_have_count(0)


def click(page: Page, name: str, role: t.Literal["button", "link"] = "button") -> None:
    wait_for_htmx(page)
    page.get_by_role(role, name=name, exact=True).click()


def rows(page: Page) -> Locator:
    """Find the saved mappings."""
    return page.locator("#credly-rows > li:not(.credly-editing, .credly-removed)")


def choose(page: Page, course: str, template: str) -> None:
    """Choose in the row that is open."""
    row = page.locator(".credly-editing").last
    row.get_by_label("Course or learning path").select_option(label=course)
    row.get_by_label("Credly badge template").select_option(label=template)


def expect_said(page: Page, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#credly-flash")).to_contain_text(text)


def focused(page: Page) -> str:
    """Name the element that has the focus, as its tag and its id or text."""
    return t.cast(
        str,
        page.evaluate(
            "() => { const e = document.activeElement;"
            " return e.tagName + (e.id ? '#' + e.id : ' ' + e.textContent.trim()) }"
        ),
    )


def expect_title(page: Page, title: str) -> None:
    from playwright.sync_api import expect

    expect(page.get_by_role("heading", level=1)).to_have_text(title)
    # What is typed before the scripts are there is not searched for.
    page.wait_for_load_state()
