"""docs/observing.md holds what it says: what a signal brings, what a record carries,
what a worker counts.
"""

from __future__ import annotations

import ast
import collections.abc as cabc
import contextlib
import datetime as dt
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import typing as t
import urllib.request

import blinker
import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from rq import suspension
from rq.exceptions import StopRequested
from sqlalchemy import orm

from example_app.redis_server import free_port
from flask_credly import accounts
from flask_credly import badge_accepted
from flask_credly import badge_failed
from flask_credly import badge_issued
from flask_credly import badge_rejected
from flask_credly import badge_replaced
from flask_credly import badge_revoked
from flask_credly import completion_withdrawn
from flask_credly import course_completed
from flask_credly import issuance_paused
from flask_credly import jobs
from flask_credly import signals
from flask_credly.credly import Client
from flask_credly.issuing import notifier
from flask_credly.issuing.poll import poll_now
from flask_credly.issuing.worker import CredlyWorker
from flask_credly.ledger import backfills
from flask_credly.ledger import polls
from flask_credly.ledger import settle
from flask_credly.models import Account
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator
from tests.support.farm import APP
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER
from tests.support.pages import Browser
from tests.support.pages import WINDOW

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/observing.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the section's table by their first column, each with the words in
    the last that are set as code.
    """
    (section,) = re.findall(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S
    )
    lines = [
        line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line
    ]
    return {
        name: re.findall(r"`(\w+)`", cells[-1] if len(cells) > 2 else "")
        for cells in lines
        for name in re.findall(r"`(\w+)`", cells[0])
    }


SIGNALS = table("Signals")
EVENTS = table("The log")


# Signals


@pytest.fixture
def heard(connected: Connected) -> cabc.Iterator[dict[str, list[dict[str, t.Any]]]]:
    """What each signal has brought."""
    known: dict[str, blinker.NamedSignal] = {
        "badge_issued": badge_issued,
        "badge_failed": badge_failed,
        "badge_accepted": badge_accepted,
        "badge_rejected": badge_rejected,
        "badge_revoked": badge_revoked,
        "badge_replaced": badge_replaced,
        "issuance_paused": issuance_paused,
    }
    heard: dict[str, list[dict[str, t.Any]]] = {name: [] for name in known}

    def receiver(name: str) -> cabc.Callable[..., None]:
        return lambda sender, **given: heard[name].append(given)

    receivers = {name: receiver(name) for name in known}

    for name, signal in known.items():
        signal.connect(receivers[name], connected.host.app)

    yield heard


def test_signals_bring_what_is_documented(
    connected: Connected, heard: dict[str, list[dict[str, t.Any]]]
) -> None:
    host, credly, _ = connected
    host.complete("1")
    host.drain()

    for act in (credly.accept, credly.reject, credly.revoke_badge):
        act(credly.badges[0]["id"])
        poll_now(host.state)

    host.complete("replaced")
    host.drain()
    credly.replace_badge(credly.badges[1]["id"])
    polls.ask_for(host.state.engine, "default", host.rows()[1].id)
    poll_now(host.state)
    credly.fail("issue", times=2, status=422)
    host.complete("2")
    host.drain()
    credly.fail("issue", status=429)
    host.complete("3")
    host.drain()
    in_docstring = {
        name: re.findall(r"``(\w+)``(?:,|:|$)", text, re.M)
        for name, text in re.findall(
            r"^:data:`(badge_\w+|issuance_\w+)`\n(.*?)\n\n",
            signals.__doc__ or "",
            re.M | re.S,
        )
    }
    found = {name: list(given[0]) for name, given in heard.items()}

    assert {name: len(given) for name, given in heard.items()} == {
        **dict.fromkeys(found, 1),
        "badge_issued": 2,
    }
    assert found == SIGNALS
    assert {name: set(keys) for name, keys in in_docstring.items()} == {
        name: set(keys) for name, keys in SIGNALS.items()
    }
    issued, _ = heard["badge_issued"]
    assert issued["badge_id"] == credly.badges[0]["id"]


@pytest.mark.parametrize("finder", ["drain", "sync"])
def test_an_expired_connection_is_signalled_once(
    connected: Connected, heard: dict[str, list[dict[str, t.Any]]], finder: str
) -> None:
    host, credly, _ = connected
    credly.fail("issue", times=9, status=401)
    credly.fail("templates", times=9, status=401)
    host.complete()
    host.db.session.execute(sa.update(Account).values(templates_synced_at=None))
    host.db.session.commit()

    for _ in range(3):
        host.drain() if finder == "drain" else jobs.sync()

    assert heard["issuance_paused"] == [{"until": None, "reason": "expired"}]


# The log


def logger_calls() -> cabc.Iterator[tuple[str, ast.Call]]:
    for path in (ROOT / "flask_credly").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                yield node.func.attr, node


def extra(call: ast.Call) -> dict[str, str]:
    """The names of the fields, and the values where they are written there."""
    given = next((each.value for each in call.keywords if each.arg == "extra"), None)

    if not isinstance(given, ast.Dict):
        return {}

    return {
        ast.literal_eval(key): getattr(value, "value", "")
        for key, value in zip(given.keys, given.values, strict=True)
        if key is not None
    }


# Said once, at the start or by a translator's mistake, or to the admin as well: nothing
# to be woken for.
WITHOUT_EVENT = (
    "Too many attempts: %s.",
    "CREDLY_ENCRYPTION_KEYS is not set",
    "The translation %r of %r is not valid. The English text is shown.",
    "A queue entry was not a job and was dropped.",
)


def test_every_record_to_alert_on_is_in_the_table() -> None:
    found: dict[str, set[str]] = {}
    nameless: list[str] = []

    for level, call in logger_calls():
        fields = extra(call)

        if "credly_event" in fields:
            found.setdefault(fields.pop("credly_event"), set()).update(fields)
        elif level in ("warning", "error", "exception"):
            nameless.append(ast.literal_eval(call.args[0]))

    assert found == {event: set(fields) for event, fields in EVENTS.items()}
    assert sorted(said[:24] for said in nameless) == sorted(
        said[:24] for said in WITHOUT_EVENT
    )


Provoke = cabc.Callable[[Connected, pytest.MonkeyPatch], None]
PROVOKE: dict[str, Provoke] = {}


def provokes(provoke: Provoke) -> Provoke:
    PROVOKE[provoke.__name__] = provoke
    return provoke


@provokes
def completion_lost(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.complete(kind="webinar")


@provokes
def completion_not_counted(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.db.session.remove()
    on.host.db.drop_all()
    on.host.state.uncounted.over.set()  # as at the end of the process
    on.host.complete(kind="webinar")

    if (writer := on.host.state.uncounted.writer) is not None:
        writer.join()


@provokes
def completion_taken_back(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.db.session.execute(sa.text("UPDATE credly_template SET name = 'x'"))
    on.host.complete()
    on.host.db.session.rollback()


@provokes
def withdrawal_lost(on: Connected, patch: pytest.MonkeyPatch) -> None:
    completion_withdrawn.send(on.host.app, member_id="42", course_id="")


@provokes
def withdrawal_taken_back(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.complete()
    on.host.db.session.rollback()
    on.host.db.session.execute(sa.text("UPDATE credly_template SET name = 'x'"))
    completion_withdrawn.send(on.host.app, member_id="42", course_id="py-101")
    on.host.db.session.rollback()


@provokes
def withdrawals_wait(on: Connected, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("flask_credly.ledger.withdrawals.MOST", 0)
    (mapping,) = accounts.list_mappings(on.host.db.session, "default")
    on.host.db.session.rollback()
    accounts.change_options(on.host.state, mapping.id, Options(withdrawn="silent"))
    on.host.complete()
    on.host.drain()
    completion_withdrawn.send(on.host.app, member_id="42", course_id="py-101")
    on.host.drain()


@provokes
def two_databases(on: Connected, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("flask_credly.completions.host_transaction._warned", False)
    other = sa.create_engine("sqlite://")

    with orm.Session() as session:
        session.connection(bind_arguments={"bind": other}).exec_driver_sql(
            "CREATE TABLE host_order (id INTEGER)"
        )
        session.connection(bind_arguments={"bind": other}).exec_driver_sql(
            "INSERT INTO host_order VALUES (1)"
        )
        on.host.complete(session=session)

    other.dispose()


@provokes
def completion_adjusted(on: Connected, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("flask_credly.catalog._warned", set())
    on.host.complete(completed_at=dt.datetime(2026, 3, 1))


@provokes
def badge_failed_(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("issue", times=2, status=422)
    on.host.complete()
    on.host.drain()


@provokes
def badge_not_saved(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:
        raise sa.exc.DataError("", {}, Exception("bad value"))

    patch.setattr(settle, "settle", save)
    on.host.complete()
    on.host.drain()


@provokes
def request_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def issue(*_: object) -> None:
        raise LookupError("member-42@example.org")

    patch.setattr(Client, "issue", issue)
    on.host.complete()
    on.host.drain()


@provokes
def batch_refused(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("batch", status=422, body={"data": {"message": "Ada, 42"}})

    for number in range(9):
        on.host.complete(str(number))

    on.host.drain()


@provokes
def connection_expired(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("issue", times=9, status=401)
    on.host.complete()
    on.host.drain()


@provokes
def key_missing(on: Connected, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(on.host.app.config, "SECRET_KEY", "another")
    on.host.complete()
    on.host.drain()


@provokes
def issuance_paused_(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("issue", status=429)
    on.host.complete()
    on.host.drain()


@provokes
def queue_unreachable(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.complete()


@provokes
def queue_suspended(on: Connected, patch: pytest.MonkeyPatch) -> None:
    queue = notifier.web_queue(on.host.state)
    suspension.suspend(queue.connection)

    try:
        with pytest.raises(StopRequested):
            CredlyWorker(on.host.app, queue).check_for_suspension(True)
    finally:
        suspension.resume(queue.connection)


@provokes
def drain_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> t.NoReturn:
        raise ZeroDivisionError

    patch.setattr("flask_credly.issuing.dispatcher.serve", fail)
    object.__setattr__(
        on.host.app.extensions["credly"], "name_tenant", lambda: "default"
    )
    course_completed.send(
        on.host.app, member=a_member(), course_id="py-101", tenant="default"
    )

    with contextlib.suppress(ZeroDivisionError):
        on.host.drain()


@provokes
def sweep_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("", {}, Exception("gone away"))

    patch.setattr("flask_credly.issuing.worker.sweep", look)
    worker = CredlyWorker(on.host.app, notifier.web_queue(on.host.state))
    worker._sweep()


@provokes
def tables_missing(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.db.session.remove()
    on.host.db.drop_all()
    worker = CredlyWorker(on.host.app, notifier.web_queue(on.host.state))
    worker._sweep()


@provokes
def database_unfit(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def only_read(raw: t.Any, _: object) -> None:
        raw.execute("PRAGMA query_only = ON")

    engine = on.host.state.engine
    on.host.db.session.remove()
    engine.dispose()
    sa.event.listen(engine, "connect", only_read)
    answer = Browser(on.host.app).post(f"{WINDOW}/pause")
    assert answer.status_code == 503


@provokes
def reconcile_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("search", status=404)
    on.host.app.test_cli_runner().invoke(args=["credly", "reconcile"])


@provokes
def poll_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.complete()
    on.host.drain()
    on.credly.fail("look-up", status=500)
    poll_now(on.host.state)


@provokes
def badge_mismatched(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.complete()
    on.host.drain()
    on.credly.accept(on.credly.badges[0]["id"])
    on.host.row().template_id = "another"
    on.host.db.session.commit()
    poll_now(on.host.state)


@provokes
def templates_not_loaded(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("templates", status=503)
    session = on.host.db.session
    session.execute(sa.update(Account).values(templates_synced_at=None))
    session.commit()
    jobs.sync()


@provokes
def hook_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.credly.fail("issue", status=500)
    on.host.complete()
    on.host.drain()


@provokes
def receiver_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    def receiver(sender: object, **given: object) -> None:
        raise LookupError("the host's mistake")

    on.host.complete()

    with badge_issued.connected_to(receiver, on.host.app):
        on.host.drain()


@provokes
def backfill_failed(on: Connected, patch: pytest.MonkeyPatch) -> None:
    (mapping,) = accounts.list_mappings(on.host.state.session, "default")
    backfills.start(on.host.state.engine, "default", mapping.id)
    jobs.backfill()


@provokes
def setting_ignored(on: Connected, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CREDLY_SANDBOX", "true")
    app = Flask("other")
    app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://")
    SQLAlchemy().init_app(app)
    on.host.credly.init_app(app)


@provokes
def setting_unknown(on: Connected, patch: pytest.MonkeyPatch) -> None:
    app = Flask("other")
    app.config.update(
        SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://", CREDLY_TIME_OUT=5
    )
    SQLAlchemy().init_app(app)
    on.host.credly.init_app(app)


@provokes
def state_not_read(on: Connected, patch: pytest.MonkeyPatch) -> None:
    on.host.db.session.remove()
    on.host.db.drop_all()
    on.host.app.test_client().get("/integrations/")


VALUES: dict[str, dict[str, object]] = {
    "completion_lost": {
        "credly_member": "42",
        "credly_kind": "webinar",
        "credly_course": "py-101",
        "credly_completed_at": "now",
    },
    "completion_taken_back": {"credly_member": "42", "credly_course": "py-101"},
    "withdrawal_lost": {
        "credly_member": "42",
        "credly_course": "",
        "credly_withdrawn_at": "now",
        "credly_tenant": "",
    },
    "withdrawal_taken_back": {"credly_member": "42", "credly_course": "py-101"},
    "withdrawals_wait": {"credly_count": 1, "credly_tenant": "default"},
    "badge_failed": {"credly_issuance": 1},
    "badge_not_saved": {"credly_issuance": 1},
    "request_failed": {"credly_issuance": 1},
    "issuance_paused": {"credly_reason": "rate limit"},
    "hook_failed": {"credly_hook": "member", "credly_issuance": 1},
    "receiver_failed": {"credly_signal": "badge-issued"},
    "setting_unknown": {
        "message": "Unknown setting CREDLY_TIME_OUT. Use CREDLY_TIMEOUT instead.",
        "credly_setting": "CREDLY_TIME_OUT",
    },
    "setting_ignored": {
        "message": "The environment variable CREDLY_SANDBOX is not used. Call"
        " app.config.from_prefixed_env() before credly.init_app(app) to read"
        " variables that begin with FLASK_CREDLY_.",
        "credly_setting": "CREDLY_SANDBOX",
    },
    "drain_failed": {"credly_tenant": "default"},
    "backfill_failed": {"credly_kind": "course", "credly_course": "py-101"},
}
"""What some of the fields are then."""


IN_WORKER = ("queue_suspended", "sweep_failed", "tables_missing")


@pytest.mark.slow
@pytest.mark.parametrize("event", EVENTS)
def test_a_record_says_what_happened_and_names_nobody(
    event: str,
    make_host: MakeHost,
    credly: CredlySimulator,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> t.NoReturn:
        raise LookupError("the host's mistake")

    queue = {"CREDLY_REDIS_URL": redis_url} if event in IN_WORKER else {}
    host = make_host(member=fails, past_completions=fails, **queue)
    caplog.set_level(logging.DEBUG)

    with host.app.app_context():
        connected = connect(host, credly)
        provoke = PROVOKE.get(event) or PROVOKE[f"{event}_"]
        provoke(connected, monkeypatch)

    records = [
        vars(record)
        for record in caplog.records
        if getattr(record, "credly_event", None) == event
    ]
    level = re.findall(rf"^\| `{event}` \| ((?:warning|error|, )+) \|", PAGE, re.M)
    assert records
    assert records[0]["levelname"].lower() in level[0].split(", ")
    assert records[0].items() >= VALUES.get(event, {}).items()

    ours = [vars(each) for each in caplog.records if each.name == "flask_credly"]
    said = json.dumps(ours, default=str) + caplog.text
    assert "example.org" not in said
    assert "Ada" not in said
    assert credly.client_secret not in said

    for record in ours:
        event_of = record.get("credly_event", "")

        if not event_of.startswith(("completion_", "withdrawal_")):
            assert "'42'" not in json.dumps(record, default=str)
            assert "credly_member" not in record


# The worker


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setenv("METRICS_PORT", str(port))
    return port


# What the page says of a plain counter, beside what it recommends.
PLAIN = """
import metrics
from flask_credly import badge_issued
from prometheus_client import Counter

plain = Counter("plain", "Counted in the forked process.")
badge_issued.connect(lambda app, **given: plain.inc(), weak=False)
"""


@pytest.mark.slow
def test_a_worker_counts_for_prometheus_as_written(
    port: int, farm: Farm, tmp_path: pathlib.Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "metrics.py").write_text(code)
    (tmp_path / "host_app.py").write_text(APP + PLAIN)
    farm.start(*WORKER)
    farm.credly.fail("issue", times=2, status=422)
    farm.host.complete("0")
    wait_for(lambda: farm.states() == {"failed": 1})

    # More than one look into the ledger: each has a process of its own.
    for number in range(1, 4):
        farm.host.complete(str(number))
        farm.wait_for_badges(number)
        wait_for(lambda n=number: farm.states().get("issued") == n)

    wait_for(lambda: "credly_badges_issued_total 3.0" in scrape(port))
    found = scrape(port)

    assert "credly_badges_failed_total 1.0" in found
    assert "credly_pauses_total 0.0" in found
    assert "plain_total 0.0" in found


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return t.cast(str, answer.read().decode())


# The probe


def test_status_has_what_is_documented(host: Host) -> None:
    found = host.app.test_cli_runner().invoke(args=["credly", "status", "--json"])

    assert list(json.loads(found.output)) == list(table("Is it healthy?"))


@pytest.mark.slow
@pytest.mark.parametrize("language", ["sh", "bash"], ids=["one", "several"])
def test_the_probe_finds_what_is_documented(
    farm: Farm, tmp_path: pathlib.Path, language: str
) -> None:
    (probe,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    programs = pathlib.Path(sys.executable).parent
    environment = {
        **farm.environment,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }

    def is_healthy() -> bool:
        done = subprocess.run(
            ["sh", "-ec", probe],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        return done.returncode == 0

    assert not is_healthy()
    farm.start(*WORKER)
    wait_for(is_healthy)

    farm.credly.fail("issue", times=9, status=401)
    farm.host.complete()
    wait_for(lambda: not is_healthy())
