"""The demo: it starts all of its parts, and ends them in every case."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
import requests
import sqlalchemy as sa

from example_app.__main__ import STARTING
from example_app.redis_server import free_port

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def demo(
    port: int, *arguments: str, **environment: str
) -> cabc.Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "example_app", "--port", str(port), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

        process.communicate(timeout=20)


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""

    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, said + process.communicate(timeout=20)[1]
        said += line

    return said


def family(pid: int) -> list[psutil.Process]:
    """All processes that descend from one."""
    return psutil.Process(pid).children(recursive=True)


def alive(parts: list[psutil.Process]) -> list[psutil.Process]:
    return [
        part
        for part in parts
        if part.is_running() and part.status() != psutil.STATUS_ZOMBIE
    ]


class Visitor:
    """Somebody with a browser that runs no scripts."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False  # not by way of a proxy

    def get(self, path: str, status: int = 200) -> str:
        response = self.session.get(self.address + path, timeout=30)
        assert response.status_code == status, response.text
        return response.text

    def post(self, path: str, seen_at: str, **fields: str) -> str:
        """Send a form of a page."""
        (token, *_) = re.findall(
            r'name="csrf_token"[^>]+value="(.+?)"', self.get(seen_at)
        )
        response = self.session.post(
            self.address + path, data={"csrf_token": token, **fields}, timeout=30
        )
        assert response.ok, response.text
        return response.text

    def become(self, name: str, community: str = "") -> None:
        group = self.get("/")

        if community:
            _, _, group = group.partition(f'<h3 class="group">{community}</h3>')

        found = re.findall(r'action="(/be/\d+)".*?<button.*?>\s*(.+?)\s*<', group, re.S)
        path = next(path for path, text in found if text.startswith(name))
        self.post(path, "/")

    def connect_and_map(self, course: str) -> list[str]:
        """Do what the demo says to an admin. Get the three values that stand for the
        account at Credly.
        """
        account = re.findall(r"<dd><code>(.+?)</code></dd>", self.get("/simulator"))
        names = ("organization_id", "client_id", "client_secret")
        window = "/integrations/credly"
        self.post(window, window, **dict(zip(names, account, strict=True)))
        form = self.get(f"{window}?mapping=new")
        (template,) = re.findall(r'<option value="([0-9a-f-]{36})">Python 101<', form)
        mapping = {"course": f"course:{course}", "template": template}
        self.post(f"{window}/mappings", window, **mapping)
        return account

    def wait_for_badge(self) -> str:
        return self.wait_for("/simulator", "ada@example.org")

    def wait_for(self, path: str, text: str) -> str:
        until = time.monotonic() + 30

        while text not in (page := self.get(path)):
            assert time.monotonic() < until, page
            time.sleep(0.1)

        return page


@pytest.fixture
def visitor() -> cabc.Iterator[Visitor]:
    """Somebody who visits the demo."""
    with demo(port := free_port()) as process:
        wait_until_ready(process)
        yield Visitor(port)


def test_two_communities_have_nothing_in_common() -> None:
    communities = {
        "Gradual North": ("Alex Admin", "Python 101", "Python for data"),
        "Gradual South": ("Toni Admin", "Python for data", "SQL basics"),
    }
    accounts: list[list[str]] = []

    with demo(port := free_port(), "--communities", "2") as process:
        said = wait_until_ready(process)
        visitor = Visitor(port)
        assert "Two communities" in visitor.get("/")
        visitor.get("/integrations/", 404)

        for name, (admin, own, others) in communities.items():
            visitor.become(admin, name)
            courses = visitor.get("/")
            assert own in courses
            assert others not in courses
            accounts.append(visitor.connect_and_map("py-101"))
            visitor.get("/integrations/credly/communities", 403)

        for name in communities:
            visitor.become("Ada", name)
            visitor.post("/complete/py-101", "/")

        for name in communities:
            visitor.become("Ada", name)
            assert visitor.wait_for_badge().count("ada@example.org") == 1

        visitor.become("Ola Operator", "The platform")
        assert "/integrations/credly/communities" in visitor.get("/")
        found = visitor.get("/integrations/credly/communities")
        visitor.get("/integrations/", 404)
        visitor.get("/simulator", 404)

    assert "Communities" in said
    assert re.findall(r"<bdi>(\w+)</bdi>", found) == ["north", "south"]
    assert found.count('data-state="connected"') == 2
    assert "example.org" not in found
    assert not set(accounts[0]) & set(accounts[1])


def test_a_person_accepts_and_revokes_at_the_simulator(visitor: Visitor) -> None:
    visitor.post("/be/1", "/")  # the admin
    visitor.connect_and_map("py-101")
    visitor.get("/me")
    visitor.post("/be/2", "/")  # Ada
    assert "Can be earned" in visitor.get("/me")
    visitor.post("/complete/py-101", "/")
    page = visitor.wait_for_badge()
    mine = visitor.get("/me")
    assert "Waiting for you" in mine
    assert re.search(r'href="https://www\.credly\.com/badges/[^"]+/accept"', mine)
    visitor.post("/be/3", "/")  # Ben
    assert "Can be earned" in visitor.get("/me")
    (accept,) = re.findall(r'action="(.+?/accept)"', page)
    revoke = accept.replace("/accept", "/revoke-badge")
    assert "<td>pending</td>" in page
    assert "<td>accepted</td>" in visitor.post(accept, "/simulator")
    assert "<td>revoked</td>" in visitor.post(revoke, "/simulator")
    assert "does not become" in visitor.post(accept, "/simulator")
    page = visitor.get("/simulator")
    assert accept not in page
    assert revoke not in page


def test_a_completion_that_is_withdrawn_may_take_its_badge_with_it(
    visitor: Visitor,
) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("py-101")
    window = "/integrations/credly"
    (options,) = re.findall(r'"(/[^"]+/options)"', visitor.get(window))
    visitor.post(options, options, withdrawn="silent")
    visitor.become("Ada")
    assert "/withdraw/" not in visitor.get("/")
    visitor.post("/complete/py-101", "/")
    visitor.wait_for_badge()
    assert "was withdrawn" in visitor.post("/withdraw/py-101", "/")
    assert "/withdraw/" not in visitor.get("/")
    page = visitor.wait_for("/simulator", "<td>revoked</td>")

    assert page.count("ada@example.org") == 1


def test_there_are_badges_for_500_members_who_completed_a_course_before(
    visitor: Visitor,
) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("flask")
    window = "/integrations/credly"
    (backfill,) = re.findall(r'"(/[^"]+/backfill)"', visitor.get(window))
    found = visitor.get(backfill)
    people = visitor.get("/")

    assert "500" in found
    assert not re.search(r"Member \d", people)


def test_pictures_are_shown_by_the_demo_itself(visitor: Visitor) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("py-101")
    visitor.become("Ada")
    page = visitor.get("/me")
    (address,) = re.findall(r'<img src="([^"]+)"', page)
    picture = visitor.get(address)
    visitor.become("Alex")
    pages = page + visitor.get("/integrations/credly")

    assert picture.startswith("<svg")
    assert "Example" in picture
    assert "images.credly.com" not in pages


@pytest.mark.parametrize(
    ("name", "may_issue", "may_revoke"),
    [("Alex", True, True), ("Carol", True, False), ("Vera", False, False)],
)
def test_roles_differ_in_what_they_may_do(
    name: str, may_issue: bool, may_revoke: bool, visitor: Visitor
) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("py-101")
    visitor.become("Ada")
    visitor.post("/complete/py-101", "/")
    visitor.wait_for_badge()
    visitor.become(name)
    window = visitor.get("/integrations/credly")
    badge = visitor.get("/integrations/credly/badges/1")

    assert ("?mapping=new" in window) is may_issue
    assert ("/revoke" in badge) is may_revoke
    assert ("ada@example.org" in badge) is may_issue


def test_a_badge_template_is_archived_at_the_simulator(visitor: Visitor) -> None:
    visitor.become("Alex")
    (archive,) = re.findall(
        r'"(/simulator/templates/[^"]+006/archived)"', visitor.get("/simulator")
    )
    page = visitor.post(archive, "/simulator")
    assert "Python 101<small>archived</small>" in page
    visitor.post(archive.replace("archived", "active"), "/simulator")
    assert "<small>archived" not in visitor.get("/simulator")


def test_an_outage_lasts_until_it_is_ended(visitor: Visitor) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("py-101")
    visitor.post("/simulator/outage", "/simulator")
    visitor.become("Ada")
    visitor.post("/complete/py-101", "/")
    visitor.wait_for(
        "/simulator",
        "badges</code> → 503",
    )
    visitor.post("/simulator/clear", "/simulator")
    visitor.wait_for_badge()


def test_a_name_that_was_missing_is_added_and_a_retry_issues_the_badge(
    visitor: Visitor,
) -> None:
    visitor.become("Alex")
    visitor.connect_and_map("py-101")
    visitor.become("Dan")
    assert "ada@example.org" not in visitor.get("/members")
    visitor.post("/complete/py-101", "/")
    visitor.become("Alex")
    badge = "/integrations/credly/badges/1"
    page = visitor.wait_for(badge, "no last name")
    assert "profile on this site, not in Credly. Then retry." in page
    (form,) = re.findall(
        r'dan@example.org</span>.+?"(/members/\d+)"', visitor.get("/members"), re.S
    )
    visitor.post(form, "/members", first_name="Dan", last_name="Example")
    visitor.post(f"{badge}/retry", badge)
    visitor.wait_for("/simulator", "Dan Example")


def test_the_simulators_page_says_what_it_does_wrong(visitor: Visitor) -> None:
    assert "Now it answers as Credly does" in visitor.get("/simulator")
    visitor.post("/simulator/outage", "/simulator")
    page = visitor.post("/simulator/revoke", "/simulator")
    assert "<strong>Revoke the credentials, Outage</strong>" in page
    visitor.post("/simulator/restore", "/simulator")
    visitor.post("/simulator/clear", "/simulator")
    assert "Now it answers as Credly does" in visitor.get("/simulator")


def test_a_fault_is_one_communitys() -> None:
    with demo(port := free_port(), "--communities", "2") as process:
        wait_until_ready(process)
        visitor = Visitor(port)
        visitor.become("Alex Admin", "Gradual North")
        visitor.post("/simulator/revoke", "/simulator")
        visitor.become("Toni Admin", "Gradual South")
        visitor.connect_and_map("py-101")
        assert "Connected" in visitor.get("/integrations/")


def test_without_the_switch_nothing_is_seen_of_communities() -> None:
    with demo(port := free_port()) as process:
        said = wait_until_ready(process)
        visitor = Visitor(port)
        page = visitor.get("/")
        visitor.post("/be/1", "/")  # the admin
        pages = [page, visitor.get("/"), visitor.get("/simulator"), said]
        visitor.get("/integrations/credly/communities", 404)
        visitor.connect_and_map("py-101")
        pages.append(visitor.get("/integrations/credly"))

    for each in pages:
        assert "ommunit" not in each
        assert "perator" not in each
        assert 'class="group"' not in each


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_and_ends_all_of_its_parts(number: signal.Signals) -> None:
    port = free_port()

    with demo(port) as process:
        said = wait_until_ready(process)
        parts = family(process.pid)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
        process.send_signal(number)
        process.communicate(timeout=20)

    assert f"http://127.0.0.1:{port}" in said
    assert "Python 101" in page
    assert len(parts) >= 4 - ("CREDLY_REDIS_URL" in os.environ)
    assert process.returncode == 0
    assert alive(parts) == []


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = subprocess.run(
            [sys.executable, "-m", "example_app", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert found.returncode == 1
    assert f"Port {port} cannot be used" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_part_that_dies_ends_the_others_and_is_named() -> None:
    with demo(free_port()) as process:
        wait_until_ready(process)
        parts = family(process.pid)
        (simulator,) = [
            part for part in parts if "flask_credly.testing" in part.cmdline()
        ]
        simulator.kill()
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "The simulator ended with status -9" in errors
    assert alive(parts) == []


def test_a_worker_that_dies_starts_again() -> None:
    with demo(port := free_port()) as process:
        wait_until_ready(process)
        ready = time.monotonic()
        visitor = Visitor(port)
        visitor.become("Alex")
        visitor.connect_and_map("py-101")
        parts = family(process.pid)
        (worker,) = [
            part
            for part in parts
            if "worker" in part.cmdline() and part.parent().pid == process.pid
        ]
        wait_for_age(ready)
        worker.kill()
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        assert said == "\nThe worker ended with status -9. It starts again.\n"
        visitor.become("Ada")
        visitor.post("/complete/py-101", "/")
        visitor.wait_for_badge()


def wait_for_age(since: float) -> None:
    """Until what runs since then is not taken for one that cannot start.

    :param since: By the monotonic clock: a process's own time of creation may be off by
        a second.
    """
    time.sleep(max(0.0, since + STARTING + 0.5 - time.monotonic()))


def test_a_redis_that_does_not_answer_is_said() -> None:
    with demo(free_port(), CREDLY_REDIS_URL="redis://127.0.0.1:1/0") as process:
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "CREDLY_REDIS_URL" in errors


def test_it_brings_its_own_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one on the PATH."""
    from example_app.redis_server import running_redis

    monkeypatch.delenv("CREDLY_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", "")
    started = time.monotonic()

    with running_redis() as url:
        assert url.startswith("redis://127.0.0.1:")

    assert time.monotonic() - started < 10


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_several_processes_can_be_the_first_at_once(database: str) -> None:
    code = """
from example_app import create_app
from example_app.models import create_example_data

with create_app().app_context():
    input()
    create_example_data()
"""
    environment = {
        **os.environ,
        "EXAMPLE_DATABASE": database,
        "EXAMPLE_SECRET_KEY": "a key for tests",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    time.sleep(3)  # until all of them wait

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    engine = sa.create_engine(database)

    with engine.connect() as connection:
        for table, number in (("person", 507), ("course", 8), ("enrolment", 500)):
            counted = sa.text(f"SELECT count(*) FROM {table}")
            assert connection.scalar(counted) == number

    engine.dispose()
