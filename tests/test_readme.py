"""The documentation holds what it says: its code runs as written, its lists are
complete.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import blinker
import click
import pytest
from conftest import Connected
from conftest import DEAD_REDIS
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask.cli import AppGroup
from flask_babel import Babel
from flask_sqlalchemy import SQLAlchemy

from flask_credly.doctor import _CHECKS
from flask_credly.ledger.log import ERRORS
from flask_credly.models import Base
from tests import promises

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
README = PAGES["README.md"]


def code_of(page: str) -> list[str]:
    """Get the Python of a page that is said to run."""
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


(SHORT_APP,) = code_of("README.md")
(APP,) = code_of("docs/tutorial.md")
(ADAPTER,) = code_of("docs/completions.md")
TEST = code_of("docs/testing.md")[0]


def run(code: str, **names: t.Any) -> dict[str, t.Any]:
    names["__name__"] = "readme"
    exec(compile(code, "documentation", "exec"), names)
    return names


@pytest.fixture(params=["sqlite://", "sqlite:///{}/school.db"])
def app(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    request: pytest.FixtureRequest,
) -> t.Iterator[Flask]:
    values = {
        "SECRET_KEY": "a key for tests",
        "SQLALCHEMY_DATABASE_URI": request.param.format(tmp_path),
        "CREDLY_REDIS_URL": DEAD_REDIS,
        "TESTING": "true",
        "WTF_CSRF_ENABLED": "false",
    }

    for key, value in values.items():
        monkeypatch.setenv(f"FLASK_{key}", value)

    names = run(APP)
    app = names["create_app"]()
    yield app

    with app.app_context():
        names["db"].session.remove()
        names["db"].engine.dispose()


def test_the_application_and_its_test_work_as_written(app: Flask) -> None:
    test = run(TEST)["test_a_completion_becomes_a_badge"]
    test(app)

    # The database is not empty any more.
    with pytest.raises(AssertionError, match="Another organization is connected"):
        test(app)


def test_the_short_application_works_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Without a transaction of its own: the completion is stored at once."""
    path = f"sqlite:///{tmp_path}/school.db"
    monkeypatch.setenv("FLASK_SECRET_KEY", "a key for tests")
    monkeypatch.setenv("FLASK_CREDLY_REDIS_URL", DEAD_REDIS)
    monkeypatch.setenv("FLASK_TESTING", "true")
    monkeypatch.setenv("FLASK_WTF_CSRF_ENABLED", "false")
    code = SHORT_APP.replace("sqlite:///school.db", path)
    assert code != SHORT_APP
    names = run(code)
    app = names["app"]
    client = app.test_client()

    assert client.get("/integrations/").status_code == 403

    with client.session_transaction() as session:
        session["role"] = "admin"

    monkeypatch.setattr(app, "test_client", lambda: client)
    run(TEST)["test_a_completion_becomes_a_badge"](app)

    with app.app_context():
        names["db"].session.remove()
        names["db"].engine.dispose()


def test_the_adapter_works_as_written(connected: Connected) -> None:
    class User:
        id, email, first_name, last_name = 42, "ada@example.org", "Ada", "Example"

    class Lesson:
        slug = "py-101"

    import datetime as dt

    finished_at = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
    signal = blinker.Signal()
    names = run(ADAPTER, lesson_finished=signal)
    signal.send(None, user=User, course=Lesson, finished_at=finished_at)
    row = connected.host.row()

    assert callable(names["issue_badge"])
    assert (row.member_id, row.completed_at) == ("42", finished_at)


@pytest.mark.slow
def test_a_catalogue_is_made_as_written(
    make_host: MakeHost, tmp_path: pathlib.Path
) -> None:
    page = PAGES["docs/configuration.md"]
    (commands,) = re.findall(r"```\n(pot=.*?)```", page, re.S)
    start, compile_ = commands.split("pybabel compile")
    run_in_shell(start, tmp_path)
    (path,) = re.findall(r"translate `(.+?)`", page)
    file = tmp_path / path
    empty = 'msgid "Not connected"\nmsgstr ""'
    assert empty in file.read_text()
    file.write_text(file.read_text().replace(empty, f'{empty[:-1]}Niet verbonden"'))
    run_in_shell(f"pybabel compile{compile_}", tmp_path)
    run_in_shell(start.replace("init", "update").replace(" -l nl", ""), tmp_path)

    def setup(app: Flask, db: SQLAlchemy) -> None:
        app.root_path = str(tmp_path)
        Babel(app, locale_selector=lambda: "nl")

    shown = make_host(setup=setup).app.test_client().get("/integrations/")

    assert "Niet verbonden" in shown.text
    assert "Niet verbonden" in file.read_text()


def run_in_shell(commands: str, folder: pathlib.Path) -> None:
    programs = pathlib.Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-ec", commands],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
        capture_output=True,
    )


def test_every_setting_is_named() -> None:
    source = ROOT / "flask_credly/settings.py"
    settings = set(re.findall(r'"(CREDLY_[A-Z_]+)"', source.read_text()))
    rows = re.findall(r"^\| (`CREDLY_.+?) \|", PAGES["docs/configuration.md"], re.M)

    assert settings == {name for row in rows for name in re.findall("[A-Z_]+", row)}


def test_every_table_is_named() -> None:
    named = set(re.findall(r"`(credly_[a-z_]+)`", PAGES["docs/security.md"]))

    assert named == set(Base.metadata.tables)


def test_every_command_is_named(host: Host) -> None:
    group = t.cast(AppGroup, host.app.cli.commands["credly"])
    rows = re.findall(r"^\| `flask credly ([\w-]+)", PAGES["docs/commands.md"], re.M)

    assert group.list_commands(click.Context(group)) == sorted(rows)


def test_every_command_that_a_page_names_exists(host: Host) -> None:
    group = t.cast(AppGroup, host.app.cli.commands["credly"])

    for name, text in PAGES.items():
        named = set(re.findall(r"flask credly ([a-z][a-z-]+)", text))
        assert named <= set(group.list_commands(click.Context(group))), name


def test_every_hook_is_named() -> None:
    source = ROOT / "flask_credly/extension.py"
    hooks = re.findall(r"def (\w+)\(self, hook: HookT\)", source.read_text())
    rows = re.findall(r"^\| `@credly\.(\w+)`", PAGES["docs/completions.md"], re.M)

    assert sorted(rows) == sorted(hooks)


def test_every_check_and_error_is_explained() -> None:
    page = PAGES["docs/troubleshooting.md"]
    checks, log = re.findall(r"^## (?:Checks|In the).*?(?=^## )", page, re.S | re.M)

    assert re.findall(r"^### (.+)", checks, re.M) == [name for name, *_ in _CHECKS]
    assert sorted(re.findall(r"^### (.+)", log, re.M)) == sorted(ERRORS)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()

    for name in ("docs/index.md", "docs/recipes/index.md"):
        folder = (ROOT / name).parent
        for block in re.findall(r"```{toctree}\n(.*?)```", PAGES[name], re.S):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    listed.add(str((folder / f"{line}.md").relative_to(ROOT)))

    assert listed == set(PAGES) - {"README.md", "docs/index.md"}


def test_every_link_leads_somewhere() -> None:
    for name, text in PAGES.items():
        folder = (ROOT / name).parent
        for target, anchor in re.findall(r"\]\(([^)#\s:]*)(#[^)]*)?\)", text):
            path = (folder / target).resolve() if target else ROOT / name
            assert path.exists(), f"{name}: {target}"
            if anchor:
                assert anchor[1:] in anchors(path.read_text()), f"{name}: {anchor}"


def anchors(text: str) -> set[str]:
    """Name the headings of a page as links do."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def test_every_promise_has_its_test() -> None:
    found = collections.Counter(each.kind for each in promises.promises())

    for name, least in {"faults": 40, "threats": 25}.items():
        rows = re.findall(r"^\|(?!--| \| threat| fault) ", document(name), re.M)
        assert found[name] == len(rows) > least

    assert promises.unproven() == []


def test_every_test_that_a_page_names_exists() -> None:
    for page in PAGES.values():
        named = re.findall(r"`(test_\w+\.py::\w+)`", page)
        assert len(named) == page.count("::test_")
        assert set(named) <= promises.known()


def test_every_requirement_of_asvs_has_a_test_or_a_reason() -> None:
    page = document("asvs")
    verdicts = dict(re.findall(r"^\| ([*\w' ]+) \| .+ \| (\d+) \|$", page, re.M))
    row = r"^\| V([\d.]+) \| [123] \| [^|]+ \| ([^|]+) \| ([^|]+) \|$"
    rows = re.findall(row, page, re.M)
    numbers = [tuple(map(int, number.split("."))) for number, _, _ in rows]
    found = collections.Counter(
        verdict[0]
        if (verdict := re.match(r"\*\*[^*]+\*\*", how))
        else "a test"
        if "::" in reason
        else "a reason"
        for _, how, reason in rows
    )

    assert len(rows) == len(re.findall(r"^\| V\d", page, re.M)) >= 50
    assert numbers == sorted(set(numbers))
    assert {verdict: int(number) for verdict, number in verdicts.items()} == found


def document(name: str) -> str:
    return PAGES[f"docs/{name}.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-b", "html", "docs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert built.returncode == 0, built.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} > {"tutorial", "api"}
