"""Several communities of one site: what works for all of them, and what names which."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import json
import re
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import COURSES
from conftest import every_database
from conftest import MakeHost
from cryptography.fernet import Fernet
from test_tenants import count
from test_tenants import everything
from test_tenants import fill
from test_tenants import Lived
from test_tenants import lived as lived
from test_tenants import named
from test_tenants import site as site

from flask_credly import jobs
from flask_credly.admin.blueprint import ROUTES
from flask_credly.issuing import unrecorded
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.sites import make_site
from tests.support.sites import Site

# Which statements name no community, and why

OF_ALL = {
    "the installation is everybody's": r"^(?!.*credly_(?!installation))",
    "who is connected": r"^select credly_account\.tenant.* from credly_account",
    "who has open rows": r"^with recursive",
    "whose backfill is due": r"from credly_batch where credly_batch\.due_at <= ",
    "what is old, of all": (
        r"^select credly_\w+\.id from credly_\w+ where credly_\w+\.id > .* limit"
    ),
    "what is old, in lots": (
        r"^(delete from|update) credly_\w+ .*where credly_\w+\.id in \(.*\)"
    ),
    "the operator's page": r"from credly_account where credly_account\.tenant > ",
    "whether the tables are there": r"where (false|0 = 1|1 != 1)",
}


@contextlib.contextmanager
def statements(site: Site) -> cabc.Iterator[list[str]]:
    """Read along what the database is told about our tables."""
    read: list[str] = []

    def note(conn: t.Any, cursor: t.Any, statement: str, *rest: t.Any) -> None:
        text = " ".join(statement.lower().split())

        if "credly_" in text and not text.startswith(("create", "pragma")):
            read.append(text)

    engine = site.host.db.engine
    sa.event.listen(engine, "before_cursor_execute", note)

    try:
        yield read
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def names_a_community(statement: str) -> bool:
    if statement.startswith("insert") and " values " in statement:
        return "tenant" in statement.partition(" values ")[0]

    return "tenant" in statement.partition(" where ")[2]


def strangers(read: list[str], *allowed: str) -> list[str]:
    return [
        each
        for each in dict.fromkeys(read)
        if not names_a_community(each)
        and not any(re.search(OF_ALL[why], each) for why in allowed)
    ]


ALWAYS = ("the installation is everybody's", "whether the tables are there")


def test_each_page_names_the_community_in_each_statement(lived: Lived) -> None:
    site = lived.site
    acme = site.visitor("acme")
    acme.post("/credly/resume")
    ids = {
        "mapping_id": lived.mappings["acme"],
        "run_id": lived.runs["acme"],
        "issuance_id": site.rows("acme")[0].id,
        "number": 1,
    }
    organization = site.at["acme"]
    fields = {
        "email": "ada@example.org",
        "first_name": "Ada",
        "last_name": "Example",
        "template": site.templates["acme"],
        "course": "course:sql",
        "key": "abc",
        "organization_id": organization.organization_id,
        "client_id": organization.client_id,
        "client_secret": organization.client_secret,
    }

    # Removing comes last of all.
    for method, path, view in ROUTES:
        if view.__name__ == "communities":
            continue

        with statements(site) as read:
            if method == "GET":
                acme.get(fill(path, ids))
            else:
                acme.post(fill(path, ids), **fields)

        assert strangers(read, *ALWAYS) == [], (method, path)

    assert site.visitor("beta").get("/credly").text.count("Badge of beta")


DRAIN = ("who is connected", "who has open rows")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "allowed"),
    [
        (jobs.drain, DRAIN),
        (jobs.backfill, (*DRAIN, "whose backfill is due")),
        (jobs.compare, (*DRAIN, "whose backfill is due")),
        (jobs.heal, (*DRAIN, "whose backfill is due")),
        (jobs.sync, DRAIN),
        (jobs.prune, (*DRAIN, "what is old, of all", "what is old, in lots")),
    ],
)
def test_each_job_names_the_community_in_each_statement(
    lived: Lived, job: t.Callable[[], None], allowed: tuple[str, ...]
) -> None:
    site = lived.site
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    site.host.db.session.execute(sa.update(AuditEntry).values(at=long_ago))
    site.host.db.session.execute(sa.update(Account).values(templates_synced_at=None))
    site.host.db.session.commit()
    site.complete("acme", "44")
    site.complete("beta", "44")

    with statements(site) as read:
        job()

    assert read
    assert strangers(read, *ALWAYS, *allowed) == []


def test_each_command_names_the_community_in_each_statement(lived: Lived) -> None:
    site = lived.site
    row = site.rows("acme")[0].id
    issued = next(each.id for each in site.rows("acme") if each.state == "issued")
    site.complete("acme", "77")
    waiting = site.rows("acme")[-1].id
    why = ("--reason", "By mistake.", "--silent")

    with statements(site) as read:
        for command in (
            ["status", "--json"],
            ["sync"],
            ["retry", str(row)],
            ["retry", "--all"],
            ["reissue", str(issued), *why],
            ["revoke", str(waiting), *why],
            ["backfill"],
            ["revoke-many", "--course", "py-101"],
            ["dismiss"],
            ["export-member", "42"],
            ["erase-member", "42"],
            ["rotate-keys", "--dry-run"],
        ):
            site.run(*command, "--tenant", "acme")

    assert strangers(read, *ALWAYS, *DRAIN, "whose backfill is due") == []


# Nothing that is done in one changes another


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["retry", "--all"],
        ["sync"],
        ["backfill"],
        ["dismiss"],
        ["erase-member", "42"],
        ["export-member", "42"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_for_one_community_leaves_the_other_alone(
    lived: Lived, command: list[str]
) -> None:
    site = lived.site
    # Only what the command does: not what was due all the same.
    before = everything(site, "beta")
    said = site.run(*command, "--tenant", "acme")
    assert "beta" not in said.lower()

    if command[0] == "backfill":  # what is due is recorded for all
        before.pop("credly_batch")
        before.pop("credly_issuance")

    after = everything(site, "beta")
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/credly/pause", {}),
        ("/credly/resume", {}),
        ("/credly/templates", {}),
        ("/credly/badges/retry", {}),
        ("/credly/mappings/{mapping}/remove", {}),
        ("/credly/backfills/{run}/stop", {}),
        ("/credly/remove", {"confirm": "yes"}),
        ("/credly/unrecorded/1/dismiss", {}),
    ],
)
def test_a_button_of_one_community_leaves_the_other_alone(
    lived: Lived, path: str, fields: dict[str, str]
) -> None:
    site = lived.site
    site.complete("acme", course_id="")
    site.complete("beta", course_id="")
    assert count(site, "beta") == 1
    before, own = everything(site, "beta"), everything(site, "acme")
    ids = {"mapping": lived.mappings["acme"], "run": lived.runs["acme"]}
    site.visitor("acme").post(path.format(**ids), **fields)
    assert everything(site, "acme") != own
    assert everything(site, "beta") == before


def test_a_member_of_the_same_id_is_another_ones_member(lived: Lived) -> None:
    site = lived.site
    exported = site.run("export-member", "42", "--tenant", "acme")
    assert "42@acme.example" in exported and "beta" not in exported.lower()
    site.host.credly.erase_member("42", tenant="acme")
    assert not any(row.email == "42@acme.example" for row in site.host.rows())
    assert any(row.email == "42@beta.example" for row in site.rows("beta"))
    assert (
        json.loads(site.run("export-member", "42", "--tenant", "acme"))["badges"] == []
    )


@every_database
def test_two_communities_of_one_organization_take_no_badge_of_each_other(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly)

    with site.host.app.app_context():
        site.connect("acme", credly, allow_duplicate_badges=True)
        site.connect("beta", credly, allow_duplicate_badges=True)
        # The same template, the same member: two badges.
        member = named("42", "acme")
        site.complete("acme", member=member)
        site.complete("beta", member=member)
        credly.fail("issue", how="reset", after=True, times=2)
        site.host.drain()

        for _ in range(4):
            site.host.make_due()
            site.host.drain()

        assert site.states("acme") == site.states("beta") == ["issued"]
        badges = {row.badge_id for row in site.host.rows()}
        assert len(badges) == 2 == len(credly.badges)
        earners = {each["issuer_earner_id"] for each in credly.badges}
        assert len(earners) == 2


# The command line


def test_what_changes_something_asks_for_which_community(site: Site) -> None:
    for command in (
        ["sync"],
        ["retry", "--all"],
        ["backfill"],
        ["dismiss"],
        ["erase-member", "42"],
        ["export-member", "42"],
    ):
        said = site.run(*command, exit_code=2)
        assert "--tenant" in said and "acme" in said and "beta" in said, command


def test_a_community_that_nobody_has_heard_of_is_said_to_be_that(site: Site) -> None:
    assert "'gamma'" in site.run("sync", "--tenant", "gamma", exit_code=2)
    site.run("status", "--tenant", "gamma", exit_code=2)
    assert site.rows("gamma") == []


def test_the_only_community_needs_no_name(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme")

    with site.host.app.app_context():
        assert "Active badge templates" in site.run("sync")
        one = json.loads(site.run("status", "--json"))
        assert one["connection"] == "connected"
        every = json.loads(site.run("status", "--json", "--all"))
        assert every == {"tenants": {"acme": one}}


def test_a_removed_community_whose_badges_are_there_still_has_to_be_named(
    site: Site,
) -> None:
    site.complete("acme")
    site.complete("beta")
    site.host.drain()
    site.visitor("beta").post("/credly/remove", confirm="yes")
    # Or the member of the same number of another community would be erased.
    said = site.run("erase-member", "42", exit_code=2)
    assert "acme" in said and "beta" in said
    site.run("erase-member", "42", "--tenant", "beta")
    assert [row.erased_at for row in site.rows("acme")] == [None]


def test_the_status_of_several_is_by_name(site: Site) -> None:
    site.complete("beta")
    site.complete(None)
    site.host.wait_for_count()
    found = json.loads(site.run("status", "--json"))["tenants"]
    assert list(found) == ["acme", "beta", ""]
    assert (found["acme"]["pending"], found["beta"]["pending"]) == (0, 1)
    assert found[""]["unrecorded"] == 1
    assert json.loads(site.run("status", "--json", "--tenant", "beta")) == found["beta"]
    site.run("dismiss", "--tenant", "")
    assert list(json.loads(site.run("status", "--json"))["tenants"]) == ["acme", "beta"]


def test_the_status_of_no_community_is_no_error(make_host: MakeHost) -> None:
    site = Site(make_host(tenant=lambda: None), CredlySimulator())

    with site.host.app.app_context():
        assert json.loads(site.run("status", "--json")) == {"tenants": {}}


def test_the_doctor_sees_to_each_community(site: Site) -> None:
    site.at["beta"].revoke_client()
    site.complete("beta")
    site.host.drain()
    found = json.loads(site.run("doctor", "--json", exit_code=1))
    assert set(found["tenants"]) == {"acme", "beta"}
    wrong = {
        name: [
            check
            for check, each in of_one["checks"].items()
            if each["status"] == "error"
        ]
        for name, of_one in found["tenants"].items()
    }
    assert set(wrong["acme"]) < set(wrong["beta"])
    assert "beta:" in site.run("doctor", exit_code=1)


def test_the_doctor_asks_each_community_for_its_courses_and_no_other(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    known = {"acme": COURSES, "beta": COURSES}
    site = make_site(make_host, credly, courses=lambda tenant: known[tenant])

    with site.host.app.app_context():
        assert hooks(site)["status"] == "ok"
        site.connect("acme")
        site.connect("beta")
        assert hooks(site)["status"] == "ok"
        del known["beta"]
        found = hooks(site)
        assert found["status"] == "error"
        assert "failed for beta (KeyError)" in found["detail"]


def hooks(site: Site) -> dict[str, str]:
    done = site.host.app.test_cli_runner().invoke(args=["credly", "doctor", "--json"])
    found: dict[str, str] = json.loads(done.stdout)["checks"]["hooks"]
    return found


def test_the_doctor_misses_a_worker_for_a_backfill_of_one_of_several(
    make_host: MakeHost, credly: CredlySimulator, redis_url: str
) -> None:
    queue = f"credly-{uuid.uuid4().hex}"
    site = make_site(
        *(make_host, credly, "acme", "beta"),
        CREDLY_REDIS_URL=redis_url,
        CREDLY_QUEUE=queue,
    )

    with site.host.app.app_context():
        site.complete("beta")
        earlier = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)

        with site.host.db.engine.begin() as connection:
            row = sa.update(Issuance).values(recorded_at=earlier, due_at=earlier)
            connection.execute(row.values(bulk=True))

        found = json.loads(site.run("doctor", "--json", exit_code=1))["tenants"]

    assert "no worker is running" in found["beta"]["checks"]["waiting"]["detail"]
    assert found["acme"]["checks"]["waiting"]["status"] == "ok"


def test_a_hint_of_the_doctor_names_the_community_if_there_are_several(
    site: Site,
) -> None:
    refusal = {"data": {"message": "No."}, "metadata": None}
    site.at["beta"].fail("issue", times=2, status=422, body=refusal)
    site.complete("beta")
    site.host.drain(2)
    found = json.loads(site.run("doctor", "--json", exit_code=1))["tenants"]
    hint = found["beta"]["checks"]["failed"]["hint"]
    assert hint.endswith("Then run flask credly retry --all --tenant beta")
    site.run("retry", "--all", "--tenant", "beta")


def test_one_unreadable_secret_keeps_no_other_on_the_old_key(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    old, new, lost = (Fernet.generate_key().decode() for _ in range(3))
    site = make_site(make_host, credly, CREDLY_ENCRYPTION_KEYS=lost)

    with site.host.app.app_context():
        site.connect("acme")
        site.host.app.config["CREDLY_ENCRYPTION_KEYS"] = old
        site.connect("beta")
        site.host.app.config["CREDLY_ENCRYPTION_KEYS"] = f"{new},{old}"
        said = site.run("rotate-keys", exit_code=1)
        assert "acme:" in said and "beta:" in said
        again = site.run("rotate-keys", "--tenant", "beta")
        assert again.startswith("0 encrypted")
        site.complete("beta")
        site.host.drain()
        assert site.states("beta") == ["issued"]


def test_pruning_tells_no_community_of_another(lived: Lived) -> None:
    site = lived.site
    site.visitor("acme").post("/credly/pause")
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    site.host.db.session.execute(sa.update(AuditEntry).values(at=long_ago))
    site.host.db.session.commit()
    site.run("prune")
    noted = site.host.db.session.execute(
        sa.select(AuditEntry.tenant, AuditEntry.target).order_by(AuditEntry.tenant)
    ).all()
    assert noted == [("acme", ""), ("beta", "")]


# The operator's page


def test_the_operators_page_is_for_operators(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme", "beta")
    assert site.visitor("acme").get("/credly/communities").status_code == 404

    allowed: list[t.Any] = [True]
    site = make_site(
        *(make_host, credly, "gamma"),
        is_operator=lambda: allowed[0],
        is_admin=lambda: False,
        tenant=lambda: None,
    )
    anywhere = site.visitor(None)
    assert anywhere.get("/credly/communities").status_code == 200

    for each in (False, None, 1, "yes"):
        allowed[0] = each
        assert anywhere.get("/credly/communities").status_code == 403

    one = make_site(make_host, credly, tenant=None, is_operator=lambda: True)
    assert one.visitor(None).get("/credly/communities").status_code == 404


def test_the_operators_page_shows_all_and_names_no_member(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_credly.ledger import communities

    monkeypatch.setattr(communities, "SIZE", 2)
    site = make_site(
        *(make_host, credly, "acme", "beta", "gamma"), is_operator=lambda: True
    )

    with site.host.app.app_context():
        for tenant in ("acme", "beta", "gamma"):
            site.complete(tenant, member=named("4711", "secret"))

        site.complete(None)
        site.host.wait_for_count()
        unrecorded.gather_all(site.of(""))
        operator = site.visitor(None)
        first = operator.get("/credly/communities").text
        second = operator.get("/credly/communities?after=beta").text

    assert "acme" in first and "beta" in first and "gamma" not in first
    assert "gamma" in second and "acme" not in second.replace("#acme", "")
    assert "after=beta" in first

    for page in (first, second):
        assert not re.search(r"4711|secret|Secret|py-101", page)


# What is forgotten


def test_a_community_is_forgotten(site: Site) -> None:
    for tenant in ("acme", "beta"):
        site.complete(tenant)

    site.host.drain()
    site.complete("acme", "43")
    before = everything(site, "beta")
    assert site.host.credly.forget_tenant("acme") is True
    assert everything(site, "beta") == before
    kept = site.rows("acme")
    assert [(row.state, row.email, row.first_name) for row in kept] == [
        ("issued", "", "")
    ]
    assert kept[0].member_id != "42" or kept[0].email == ""
    assert site.host.credly.forget_tenant("acme") is False
    assert site.visitor("acme").get("/credly").status_code == 200
    site.complete("acme", "44")
    assert len(site.rows("acme")) == 1
