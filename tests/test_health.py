"""The address that a probe asks: are badges issued in time?"""

from __future__ import annotations

import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import redirect

from flask_credly.models import Account
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.surface import statements

HEALTH = "/integrations/credly/health"


@pytest.fixture
def connected(make_host: MakeHost, credly: CredlySimulator) -> t.Iterator[Connected]:
    host = make_host(CREDLY_HEALTH=True, is_admin=lambda: redirect("/login"))

    with host.app.app_context():
        yield connect(host, credly)


def ask(host: Host) -> tuple[int, dict[str, t.Any]]:
    host.db.session.rollback()
    answer = host.app.test_client().get(HEALTH)
    assert answer.mimetype == "application/json"
    assert answer.headers["Cache-Control"] == "no-store, private"
    return answer.status_code, t.cast("dict[str, t.Any]", answer.json)


def change(host: Host, model: t.Any, **values: t.Any) -> None:
    host.db.session.execute(sa.update(model).values(**values))
    host.db.session.commit()


def due_since(host: Host, **ago: float) -> None:
    change(host, Issuance, due_at=dt.datetime.now(dt.UTC) - dt.timedelta(**ago))


WELL = (200, {"status": "ok", "oldest_due_seconds": None})


def test_it_is_not_there_unless_it_is_switched_on(make_host: MakeHost) -> None:
    assert make_host().app.test_client().get(HEALTH).status_code == 404


@every_database
def test_how_long_the_oldest_badge_is_due(connected: Connected) -> None:
    host = connected.host
    assert ask(host) == WELL

    host.complete()
    status, said = ask(host)
    assert (status, said["status"]) == (200, "ok")
    assert 0 <= said["oldest_due_seconds"] < 60

    due_since(host, minutes=14)
    status, said = ask(host)
    assert (status, said["status"]) == (200, "ok")
    assert 840 <= said["oldest_due_seconds"] < 860

    due_since(host, minutes=16)
    host.complete("7")
    status, said = ask(host)
    assert (status, said["status"]) == (503, "late")
    assert 960 <= said["oldest_due_seconds"] < 980

    host.drain()
    assert ask(host) == WELL


def test_what_is_to_be_revoked_may_be_late_too(connected: Connected) -> None:
    host = connected.host
    host.complete()
    change(host, Issuance, action="revoke", state="issued")
    due_since(host, hours=1)

    assert ask(host)[0] == 503


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Account, {"expired": True}),
        (Account, {"switched_off": True}),
        (Account, {"paused_until": dt.datetime(2999, 1, 1, tzinfo=dt.UTC)}),
        (Installation, {"is_copy": True}),
        # It waits for its turn.
        (Issuance, {"bulk": True}),
        # It waits for its next try.
        (Issuance, {"due_at": dt.datetime(2999, 1, 1, tzinfo=dt.UTC)}),
    ],
)
def test_what_waits_for_good_reason_is_not_late(
    connected: Connected, model: t.Any, values: dict[str, t.Any]
) -> None:
    host = connected.host
    host.complete()
    due_since(host, hours=1)
    change(host, model, **values)

    assert ask(host) == WELL


def test_it_is_of_no_community_and_nobody_is_asked(make_host: MakeHost) -> None:
    def refuse() -> str:
        raise AssertionError("a probe is nobody, and in no community")

    host = make_host(CREDLY_HEALTH=True, tenant=refuse, is_admin=refuse)

    with host.app.app_context():
        assert ask(host) == WELL


@every_database
def test_many_communities_are_asked_by_one_statement(
    connected: Connected,
) -> None:
    host = connected.host
    host.complete()
    due_since(host, hours=1)
    (account,) = host.db.session.execute(sa.select(Account.__table__)).mappings()
    (row,) = host.db.session.execute(sa.select(Issuance.__table__)).mappings()
    names = [f"community-{each}" for each in range(200)]
    rows = [
        {**row, "id": None, "tenant": name, "member_id": str(each)}
        for name in names
        for each in range(5)
    ]

    for each in rows:
        each.pop("id")

    accounts = [{**account, "tenant": name} for name in names]
    host.db.session.execute(sa.insert(Account), accounts)
    host.db.session.execute(sa.insert(Issuance), rows)
    host.db.session.commit()
    ask(host)

    with statements(host) as said:
        status, answer = ask(host)

    asked = [each for each in said if "credly_" in each]
    assert (status, len(asked), len(said) <= 2) == (503, 1, True)
    assert set(answer) == {"status", "oldest_due_seconds"}


def test_it_is_unavailable_without_our_tables(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    host = connected.host
    host.db.session.execute(sa.text("ALTER TABLE credly_account RENAME TO gone"))
    host.db.session.commit()

    assert ask(host) == (503, {"status": "unavailable", "oldest_due_seconds": None})
    (record,) = [each for each in caplog.records if hasattr(each, "credly_event")]
    assert record.__dict__["credly_event"] == "state_not_read"
    host.db.session.execute(sa.text("ALTER TABLE gone RENAME TO credly_account"))
    host.db.session.commit()


def test_it_is_read_and_not_written_to(connected: Connected) -> None:
    client = connected.host.app.test_client()

    assert client.head(HEALTH).status_code == 200
    assert client.post(HEALTH).status_code == 405


def test_it_is_the_only_address_for_everybody_and_the_files(
    make_host: MakeHost,
) -> None:
    host = make_host(CREDLY_HEALTH=True, is_admin=lambda: False)
    client = host.app.test_client()
    open_ = {
        rule.endpoint
        for rule in host.app.url_map.iter_rules()
        if rule.endpoint.startswith("credly.")
        and "GET" in (rule.methods or ())
        and client.get(
            rule.build(dict.fromkeys(rule.arguments, 1))[1]  # type: ignore[index]
        ).status_code
        != 403
    }

    assert open_ == {"credly.health", "credly.static"}


def test_the_answer_in_full(connected: Connected) -> None:
    answer = connected.host.app.test_client().get(HEALTH)

    assert answer.text == '{"status": "ok", "oldest_due_seconds": null}'
