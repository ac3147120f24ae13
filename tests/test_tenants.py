"""Several communities of one site: who is asked, what a signal is taken for, and that
each sees nothing but its own.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import html
import json
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import COURSES
from conftest import MakeHost
from flask import abort
from flask import render_template_string

from flask_credly import accounts
from flask_credly import Course
from flask_credly import Member
from flask_credly import signals
from flask_credly.admin.blueprint import ROUTES
from flask_credly.issuing import unrecorded
from flask_credly.ledger import backfills
from flask_credly.ledger.transaction import in_session
from flask_credly.models import AuditEntry
from flask_credly.models import Base
from flask_credly.testing import CredlySimulator
from tests.support.sites import by_header
from tests.support.sites import HEADER
from tests.support.sites import make_site
from tests.support.sites import Site

PAGES = [path for method, path, _ in ROUTES if method == "GET" and "<" not in path]
OF_ALL = "/credly/communities"


@pytest.fixture
def site(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Site]:
    """A host of two communities that are connected."""
    made = make_site(make_host, credly, "acme", "beta")

    with made.host.app.app_context():
        yield made


# The hook that names the community


def fails() -> str:
    raise LookupError("no such site")


class Later:
    """What an asynchronous function gives, without the warning that nobody waits."""

    def __await__(self) -> cabc.Iterator[None]:
        yield


@pytest.mark.parametrize(
    "hook",
    [
        lambda: None,
        fails,
        Later,
        lambda: "",
        lambda: "a" * 192,
        lambda: "a\x00b",
        lambda: b"acme",
        lambda: ["acme"],
        lambda: True,
        lambda: abort(404),
    ],
    ids=[
        *("none", "raises", "awaitable", "blank", "too-long", "nul", "bytes"),
        *("list", "bool", "aborts"),
    ],
)
def test_no_page_is_there_where_the_host_names_no_community(
    hook: t.Callable[[], t.Any], make_host: MakeHost
) -> None:
    asked: list[str] = []
    host = make_host(tenant=hook, is_admin=lambda: asked.append("admin") or True)
    client = host.app.test_client()

    for method, path, _ in ROUTES:
        if path != OF_ALL:
            path = "/integrations" + re.sub("<int:.*?>", "1", path)
            assert client.open(path, method=method).status_code == 404, path

    assert asked == []


def test_the_host_may_refuse_in_its_own_way(make_host: MakeHost) -> None:
    host = make_host(tenant=lambda: abort(451))
    assert host.app.test_client().get("/integrations/").status_code == 451


async def later() -> str:
    return "acme"


def test_an_asynchronous_hook_is_refused_at_the_start(make_host: MakeHost) -> None:
    with pytest.raises(RuntimeError, match="@credly.tenant"):
        make_host(tenant=later)


def test_an_admin_is_asked_for_after_the_community_is_known(
    make_host: MakeHost,
) -> None:
    asked: list[str] = []

    def is_admin(*, tenant: str) -> bool:
        asked.append(tenant)
        return tenant == "acme"

    site = make_site_without(make_host, is_admin=is_admin)
    assert site.visitor("acme").get("/credly").status_code == 200
    assert site.visitor("beta").get("/credly").status_code == 403
    assert asked == ["acme", "beta"]


def make_site_without(make_host: MakeHost, **given: t.Any) -> Site:
    return Site(make_host(tenant=by_header, **given), CredlySimulator())


def test_each_hook_is_told_the_community_if_it_takes_that(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    told: dict[str, list[str]] = {}

    def courses(tenant: str) -> list[Course]:
        told.setdefault("courses", []).append(tenant)
        return COURSES

    def actor(*, tenant: str = "") -> str:
        told.setdefault("actor", []).append(tenant)
        return f"admin of {tenant}"

    def past(course: Course, since: t.Any, tenant: str) -> t.Any:
        told.setdefault("past", []).append(tenant)
        return []

    class Members:
        def __call__(self, member_id: str, tenant: str) -> Member | None:
            told.setdefault("member", []).append(tenant)
            return a_member(member_id)

    site = make_site(
        *(make_host, credly, "acme", "beta"),
        courses=courses,
        actor=actor,
        past_completions=past,
        member=Members(),
    )

    with site.host.app.app_context():
        site.visitor("beta").get("/credly/mappings/new")
        site.visitor("beta").post("/credly/pause")
        site.visitor("beta").post("/credly/resume")
        site.at["beta"].fail("issue", status=422)
        site.complete("beta")
        site.host.drain()
        site.host.make_due()
        site.host.drain()
        site.run("backfill", "--tenant", "beta")
        of_pause = (AuditEntry.tenant == "beta", AuditEntry.action == "pause")
        by = site.host.db.session.scalar(sa.select(AuditEntry.actor).where(*of_pause))

    assert by == "admin of beta"
    assert {name: set(tenants) for name, tenants in told.items()} == {
        "courses": {"beta"},
        "actor": {"beta"},
        "past": {"beta"},
        "member": {"beta"},
    }


def test_a_context_around_several_requests_mixes_up_no_communities(
    site: Site,
) -> None:
    client = site.host.app.test_client()

    # As in a suite of the host's: all of them have one "g".
    for tenant, other in (("acme", "beta"), ("beta", "acme"), ("acme", "beta")):
        page = client.get("/integrations/credly", headers={HEADER: tenant}).text
        assert f"Badge of {tenant}" in page and f"Badge of {other}" not in page


def test_a_hosts_page_shows_the_card_of_its_community(site: Site) -> None:
    @site.host.app.route("/tools")
    def tools() -> str:
        return render_template_string("<p>Tools</p>{{ credly_card() }}")

    site.visitor("beta").post("/credly/remove", confirm="yes")
    client = site.host.app.test_client()
    shown = {
        tenant: client.get("/tools", headers={HEADER: tenant}).text
        for tenant in ("acme", "beta")
    }
    assert "Not connected" not in shown["acme"] and "Credly" in shown["acme"]
    assert shown["beta"] != "<p>Tools</p>"


@pytest.mark.parametrize("hook", [lambda: None, fails, lambda: abort(404)])
def test_a_hosts_page_without_a_community_has_no_card(
    hook: t.Callable[[], t.Any], make_host: MakeHost
) -> None:
    host = make_host(tenant=hook)

    @host.app.route("/tools")
    def tools() -> str:
        return render_template_string("<p>Tools</p>{{ credly_card() }}")

    page = host.app.test_client().get("/tools")
    assert (page.status_code, page.text) == (200, "<p>Tools</p>")


# The signal


def unknown(site: Site) -> int:
    """Count the completions that name no community."""
    return count(site, "")


def count(site: Site, tenant: str) -> int:
    site.host.wait_for_count()
    return unrecorded.read(site.of(tenant)).number


def test_a_completion_goes_to_the_community_that_it_names(site: Site) -> None:
    site.complete("beta")
    assert (site.states("acme"), site.states("beta")) == ([], ["none"])


def test_a_signal_in_a_request_is_of_the_requests_community(site: Site) -> None:
    with site.host.app.test_request_context(headers={HEADER: "beta"}):
        site.complete(None)
        site.complete("acme", "43")  # what is said goes first

    assert [row.member_id for row in site.rows("beta")] == ["42"]
    assert [row.member_id for row in site.rows("acme")] == ["43"]


def test_a_signal_outside_of_requests_is_never_guessed_at(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.complete(None, "77")
    assert site.host.rows() == []
    assert unknown(site) == 1
    assert count(site, "acme") == count(site, "beta") == 0
    (lost,) = [r for r in caplog.records if hasattr(r, "credly_event")]
    assert lost.credly_event == "completion_lost" and "'77'" in lost.getMessage()
    assert "tenant" in (lost.exc_text or "")


@pytest.mark.parametrize("hook", [lambda: None, fails, lambda: "", lambda: abort(404)])
def test_a_request_of_no_community_counts_what_it_sends(
    hook: t.Callable[[], t.Any], make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme", "beta", tenant=hook)

    with site.host.app.app_context():
        with site.host.app.test_request_context():
            site.complete(None)

        assert site.host.rows() == []
        assert unknown(site) == 1


@pytest.mark.parametrize("given", ["", "a" * 192, "a\x00b", b"acme", ["acme"], True])
def test_a_name_that_none_can_have_is_counted(site: Site, given: t.Any) -> None:
    site.complete(given)
    assert site.host.rows() == []
    assert unknown(site) == 1


def test_what_is_wrong_with_a_completion_is_counted_with_its_community(
    site: Site,
) -> None:
    site.complete("beta", course_id="")
    assert (count(site, "acme"), count(site, "beta"), unknown(site)) == (0, 1, 0)


@pytest.mark.parametrize(("given", "kept"), [("default", 1), ("acme", 0), ("", 0)])
def test_a_host_of_one_community_takes_no_other(
    make_host: MakeHost, credly: CredlySimulator, given: str, kept: int
) -> None:
    site = make_site(make_host, credly, "default", tenant=None)

    with site.host.app.app_context():
        site.complete(given)
        assert len(site.host.rows()) == kept
        assert count(site, "default") == 1 - kept
        assert json.loads(site.run("status", "--json"))["unrecorded"] == 1 - kept


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_name_that_the_database_takes_for_another_is_refused(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme")

    with site.host.app.app_context():
        site.complete("acme ")
        assert site.host.rows() == []
        assert site.visitor("acme ").get("/credly").status_code == 404
        assert site.visitor("ACME").get("/credly").text.count("Badge of acme") == 0
        site.run("sync", "--tenant", "acme ", exit_code=2)

        with pytest.raises(ValueError, match="end with a space"):
            site.host.credly.forget_tenant("acme ")


def test_what_became_of_a_badge_is_said_with_its_community(
    site: Site,
) -> None:
    said: list[tuple[str, t.Any]] = []

    def note(name: str) -> t.Callable[..., None]:
        return lambda sender, **payload: said.append((name, payload.get("tenant")))

    receivers = {
        signal: note(signal.name)
        for signal in (
            *(signals.badge_issued, signals.badge_failed, signals.issuance_paused),
        )
    }

    for signal, receiver in receivers.items():
        signal.connect(receiver, site.host.app)

    site.at["beta"].fail("issue", status=422, times=2)
    site.complete("acme")
    site.complete("beta")
    site.host.drain(3)
    site.at["acme"].revoke_client()
    site.complete("acme", "43")
    site.host.drain()
    assert sorted(said) == [
        ("badge-failed", "beta"),
        ("badge-issued", "acme"),
        ("issuance-paused", "acme"),
    ]


def test_a_host_of_one_community_hears_of_none(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "default", tenant=None)
    said: list[dict[str, t.Any]] = []

    def note(sender: t.Any, **payload: t.Any) -> None:
        said.append(payload)

    with site.host.app.app_context():
        signals.badge_issued.connect(note, site.host.app)
        site.complete(None)
        site.host.drain()

    assert len(said) == 1 and "tenant" not in said[0]


# What is another's is not there


class Lived(t.NamedTuple):
    """Two communities that have lived, with the same members and courses."""

    site: Site
    mappings: dict[str, int]
    runs: dict[str, int]


PAST = [(a_member(str(n)), "2025-01-02T03:04:05+00:00") for n in range(50, 53)]


def past_completions(course: Course, since: t.Any, *, tenant: str) -> t.Any:
    if course.id == "py-101":
        for member, when in PAST:
            named = dataclasses.replace(member, first_name=tenant.title())
            yield named, dt.datetime.fromisoformat(when)


@pytest.fixture
def lived(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Lived]:
    site = make_site(
        *(make_host, credly, "acme", "beta"),
        past_completions=past_completions,
        actor=lambda *, tenant: f"admin of {tenant}",
    )

    with site.host.app.app_context():
        mappings, runs = {}, {}

        for tenant in ("acme", "beta"):
            state = site.of(tenant)
            (mapping,) = in_session(state.engine, accounts.list_mappings, tenant)
            mappings[tenant] = mapping.id
            site.at[tenant].fail("issue", status=422, times=2)
            site.complete(tenant, member=named("41", tenant))
            site.host.drain(3)
            site.complete(tenant, member=named("42", tenant))
            site.host.drain()
            site.complete(tenant, member=named("43", tenant))
            runs[tenant] = backfills.start(state.engine, tenant, mapping.id) or 0

        yield Lived(site, mappings, runs)


def named(member_id: str, tenant: str) -> Member:
    return Member(member_id, f"{member_id}@{tenant}.example", tenant.title(), "Example")


def everything(site: Site, tenant: str) -> dict[str, list[t.Any]]:
    """Read all that is stored of a community."""
    site.host.db.session.rollback()
    found = {
        table.name: [
            tuple(row)
            for row in site.host.db.session.execute(
                sa.select(table).where(table.c.tenant == tenant)
            )
        ]
        for table in Base.metadata.sorted_tables
        if "tenant" in table.c
    }
    site.host.db.session.rollback()
    return found


def test_each_page_and_export_shows_one_community(lived: Lived) -> None:
    site = lived.site
    acme, beta = site.visitor("acme"), site.visitor("beta")
    beta.post("/credly/pause")
    seen = 0

    for path in [path for path in PAGES if path != OF_ALL]:
        page = acme.get(path)
        assert page.status_code in (200, 303), path
        assert "beta" not in page.text.lower(), path
        seen += "acme" in page.text.lower()

    assert seen >= 6
    ids = {
        "mapping_id": lived.mappings["acme"],
        "run_id": lived.runs["acme"],
        "issuance_id": site.rows("acme")[0].id,
    }

    for method, path, _ in ROUTES:
        if method == "GET" and "<" in path:
            page = acme.get(fill(path, ids))
            assert page.status_code in (200, 303), path
            assert "beta" not in page.text.lower(), path


def fill(path: str, ids: dict[str, int]) -> str:
    return re.sub(r"<int:(\w+)>", lambda found: str(ids.get(found[1], 1)), path)


UNKNOWN = 987_654

WITH_IDS = [
    (method, path)
    for method, path, _ in ROUTES
    if "<" in path and "<int:number>" not in path
]

FIELDS = {
    "email": "ada@example.org",
    "first_name": "Ada",
    "last_name": "Example",
    "key": "abc",
}
"""What the forms of these routes ask for."""


def without_ids(page: t.Any, ids: cabc.Iterable[int]) -> str:
    """Get an answer without what differs by itself."""
    told = [each for each in page.headers if each[0] != "Content-Length"]
    text = f"{page.status_code} {told} {html.unescape(page.text)}"

    for each in ids:
        text = re.sub(rf"\b{each}\b", "ID", text)

    # The token of a form, and of the session.
    text = re.sub(r"session=[^;]*", "", text)
    text = re.sub(r'(name="csrf_token"[^>]*value=)"[^"]*"', r'\1"…"', text)
    return re.sub(r'csrf-token" content="[^"]*"', "", text)


@pytest.mark.slow
@pytest.mark.parametrize("fragment", [False, True])
@pytest.mark.parametrize(("method", "path"), WITH_IDS)
def test_an_id_of_another_community_is_answered_as_an_unknown_one(
    lived: Lived, method: str, path: str, fragment: bool
) -> None:
    site = lived.site
    fields = dict(FIELDS, template=site.templates["acme"], course="course:sql")

    before = everything(site, "beta"), everything(site, "acme")
    foreign = {
        "mapping_id": lived.mappings["beta"],
        "run_id": lived.runs["beta"],
        "issuance_id": next(r.id for r in site.rows("beta") if r.state == "failed"),
    }
    unknown = dict.fromkeys(foreign, UNKNOWN)
    acme = site.visitor("acme")

    if fragment:
        acme.headers["HX-Request"] = "true"

    if method == "GET":
        asked = [acme.get(fill(path, ids)) for ids in (foreign, unknown)]
    else:
        asked = [acme.post(fill(path, ids), **fields) for ids in (foreign, unknown)]

    numbers = [*set(foreign.values()), UNKNOWN]
    assert without_ids(asked[0], numbers) == without_ids(asked[1], numbers)
    assert (everything(site, "beta"), everything(site, "acme")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/credly?edit={mapping}",
        "/credly?undo={mapping}",
        "/credly/badges?before={row}",
        "/credly/badges?after={row}",
        "/credly/errors?id={row}",
    ],
)
def test_an_id_in_a_query_finds_nothing_of_another_community(
    lived: Lived, path: str
) -> None:
    site = lived.site
    row = next(r.id for r in site.rows("beta") if r.state == "failed")
    page = site.visitor("acme").get(
        path.format(mapping=lived.mappings["beta"], row=row)
    )
    assert page.status_code in (200, 303)
    assert "beta" not in page.text.lower()
