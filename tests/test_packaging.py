"""The parts that a host installs: the wheel, its files, types and modules."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import typing as t
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "flask_credly"

ROOMS = (
    *("errors", "interruption", "secret", "assets", "signals", "i18n", "catalog"),
    *("links", "options"),
    *("settings", "tables", "models", "keys", "state"),
    *("credly", "ledger", "issuing", "completions", "accounts"),
    *("admin", "jobs", "doctor", "cli"),
    *("extension", "__init__"),
)
"""From the bottom up: a room knows its own and those before it."""

PARTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for folder in (PACKAGE, ROOT / "benchmarks", ROOT / "example_app")
    for path in folder.rglob("*.py")
}
"""The modules, by name."""


class Import(t.NamedTuple):
    """A module that another one imports.

    :param inside: The function that it is imported in. Empty: none.
    """

    module: str
    inside: str


def imports_of(name: str) -> list[Import]:
    """Read what a module imports: ours by the whole name."""
    path = PARTS[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, inside: str) -> None:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.Import):
                found.extend(Import(alias.name, inside) for alias in each.names)
            elif isinstance(each, ast.ImportFrom):
                parts = package.split(".")
                base = parts[: len(parts) - each.level + 1] if each.level else []
                start = ".".join([*base, *([each.module] if each.module else [])])

                for alias in each.names:
                    whole = f"{start}.{alias.name}"
                    found.append(Import(whole if whole in PARTS else start, inside))

            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
                visit(each, inside or each.name)
            else:
                visit(each, inside)

    visit(ast.parse(path.read_text()), "")
    return found


def room_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: pathlib.Path) -> set[str]:
    """The rooms that a module imports from, in functions too."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = [
        each.module.split(".") for each in imports_of(name.removesuffix(".__init__"))
    ]
    return {parts[1] for parts in found if parts[0] == "flask_credly" and parts[1:]}


def test_modules_know_only_those_below_them() -> None:
    rank = {room: number for number, room in enumerate(ROOMS)}
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if (room := room_of(path)) != "testing"
        for other in imported_rooms(path) - {room}
        if rank[other] > rank[room]
    ]

    assert wrong == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Find the modules that are reached from themselves, each circle once."""
    reached: dict[str, set[str]] = {}

    for start in edges:
        seen: set[str] = set()
        ahead = [start]

        while ahead:
            new = edges.get(ahead.pop(), set()) - seen
            seen |= new
            ahead += new

        reached[start] = seen

    found = {
        frozenset(other for other in seen if start in reached.get(other, ()))
        for start, seen in reached.items()
        if start in seen
    }
    return sorted(map(sorted, found))


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]

    edges = {
        name: {each.module for each in imports_of(name)} & set(PARTS) - {name}
        for name in PARTS
    }

    assert circles(edges) == []


LATE = {
    # Heavy, and of no use to most processes of a host's.
    "authlib": "for a new token only",
    "cryptography": "for what is sealed only",
    "redis": "a web process of a host without one, and any until it notifies",
    "requests": "the simulator without a server",
    "responses": "the simulator without a server",
    "rq": "as redis",
    "sqlalchemy.dialects": "the one that is in use",
    "flask_credly.credly": "requests and what it needs: a page of ours seldom asks",
    # What a worker or one command of many is about.
    "flask_credly.doctor": "a command",
    "flask_credly.issuing.compare": "a command",
    "flask_credly.issuing.poll": "a command",
    "flask_credly.issuing.profile": "a command",
    "flask_credly.issuing.reconcile": "a command",
    "flask_credly.issuing.sweep": "a command",
    "flask_credly.issuing.undo": "a worker",
    "flask_credly.issuing.worker": "a command",
    "flask_credly.ledger.claim": "a worker",
    "flask_credly.ledger.privacy": "a command, or a member's account that is closed",
    "flask_credly.ledger.retention": "a command",
    "flask_credly.admin": "a page: most processes of most hosts show none",
    "flask_credly.accounts": "a page or a command",
    "flask_credly.cli": "a command",
    "flask_credly.ledger.audit": "a page or a command",
    "flask_credly.ledger.comparisons": "a worker",
    "flask_credly.ledger.issuances": "a page, a worker, or a host that reminds members",
    "flask_credly.ledger.polls": "a worker",
    "flask_credly.ledger.runs": "a worker",
    "flask_credly.ledger.turns": "a worker",
    "flask_credly.ledger.withdrawals": "few hosts withdraw completions",
    "flask_credly.ledger.member": "many hosts show members nothing",
}
"""What is imported in a function, and why: nothing else is."""


def test_what_is_imported_in_a_function_has_its_reason() -> None:
    late = {
        (name, each.module)
        for name in PARTS
        if name.startswith("flask_credly")
        for each in imports_of(name)
        if each.inside
    }
    wrong = [
        f"{name} imports {module}"
        for name, module in sorted(late)
        if not any(f"{module}.".startswith(f"{known}.") for known in LATE)
    ]

    assert wrong == []


WRITING = {"update", "insert", "delete"}


def writes_to(tree: ast.AST, model: str, *tables: str) -> list[int]:
    """Find the lines that make a statement which changes a model's rows.

    :param tables: Names of its table that other modules give it.
    """
    names = {model, *tables}

    def is_meant(node: ast.AST) -> bool:
        """Whether it is the model, its table, or one of them by another name."""
        match node:
            case ast.Name():
                return node.id in names
            case ast.Attribute(attr="__table__"):
                return is_meant(node.value)
            case ast.Attribute():
                return node.attr in {model, *tables}
            case ast.Call(func=ast.Name(id="cast" | "aliased" | "inspect")):
                return any(map(is_meant, node.args))
            case ast.Call(ast.Attribute(value, "cast" | "aliased" | "alias")):
                return any(map(is_meant, [value, *node.args]))

        return False

    known = 0

    while known < len(names):
        known = len(names)

        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=targets, value=value) if is_meant(value):
                    names |= {each.id for each in targets if isinstance(each, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    names |= {name} if value and is_meant(value) else set()
                case ast.ImportFrom(names=aliases):
                    names |= {
                        each.asname
                        for each in aliases
                        if each.asname and each.name in {model, *tables}
                    }

    found: list[int] = []

    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=attr), args=args):
                if attr in WRITING and any(map(is_meant, [value, *args])):
                    found.append(node.lineno)
            case ast.Call(func=ast.Name(id=name), args=args):
                if name in WRITING and any(map(is_meant, args)):
                    found.append(node.lineno)

    return found


def writers(model: str, *tables: str) -> set[str]:
    """Find the modules that change a model's rows."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if writes_to(ast.parse(path.read_text()), model, *tables)
    }


@pytest.mark.parametrize(
    "code",
    [
        "sa.update(Issuance)",
        "delete(models.Issuance)",
        "ROWS.insert()",
        "_ROWS = t.cast(sa.Table, Issuance.__table__)\nsqlite.insert(_ROWS)",
        "table = Issuance.__table__\nmine = table\nmine.delete()",
        "from .conditions import ROWS as theirs\nsa.update(theirs)",
        "session.delete(Issuance)",
        "sa.update(orm.aliased(Issuance))",
    ],
)
def test_a_writer_is_found(code: str) -> None:
    assert writes_to(ast.parse(code), "Issuance", "ROWS")


def test_only_the_transitions_write_an_issuance() -> None:
    found = writers("Issuance", "ROWS", "ISSUANCE")
    # The doctor tries whether it can be written, and takes that back.
    rooms = {re.sub("(?<=^ledger/transitions/).*", "", name) for name in found}
    assert rooms == {"ledger/transitions/", "ledger/fitness.py"}


def test_an_account_is_written_by_its_room_its_gates_polls_and_token() -> None:
    others = {
        name
        for name in writers("Account", "ACCOUNT")
        if not name.startswith("accounts/")
        and name not in ("ledger/gates.py", "ledger/polls.py", "issuing/token.py")
    }

    assert others == set()


def test_the_simulator_knows_nothing_of_the_extension() -> None:
    for path in (PACKAGE / "testing").rglob("*.py"):
        assert imported_rooms(path) <= {"testing"}, path


def test_only_one_room_speaks_http_and_one_encrypts() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        room = room_of(path)
        assert room in ("credly", "testing") or not re.search(
            r"^\s*import requests", text, re.M
        )
        assert room == "keys" or "from cryptography" not in text
        assert "pickle" not in text


@pytest.mark.parametrize("folder", ["static/vendor", "tests/vendor"])
def test_the_vendored_files_are_the_published_ones(folder: str) -> None:
    """A file of others cannot be changed, added or replaced without saying so."""
    where = ROOT / folder
    manifest = json.loads((where / "vendored.json").read_text())

    assert set(manifest) == {
        path.name for path in where.glob("*.[cj]s*") if path.name != "vendored.json"
    }

    for name, said in manifest.items():
        found = (where / name).read_bytes()
        assert hashlib.sha256(found).hexdigest() == said["sha256"]
        assert re.search(rf"-{re.escape(said['version'])}(\.min)?\.(css|js)$", name)
        assert said["origin"] and said["licence"]


FORBIDDEN = (
    r"hx-on|hx-vars|hx-prompt|hx-confirm|hx-ext\b|hx-delete|hx-put|hx-patch|hx-boost",
    r"hx-headers|hx-disabled-elt|<hx-partial|\bjs:",
    r"\son\w+=|\sstyle=|<style|<script(?!\s+src=)|javascript:",
)


def test_markup_works_with_htmx_2_and_4_and_a_strict_policy() -> None:
    """One kind of markup for every host: what only one of the versions knows, or
    needs an inline script, is not used.
    """
    for path in (ROOT / "templates").rglob("*.html"):
        # What stops a host's headers adds none.
        text = path.read_text().replace('hx-headers="unset"', "")

        for pattern in FORBIDDEN:
            assert not (found := re.search(pattern, text)), (path, found)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with an sdist, and a wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    subprocess.run(
        [*command, str(folder), str(ROOT)], check=True, capture_output=True, text=True
    )
    return folder


@pytest.mark.slow
def test_a_wheel_is_the_same_wherever_it_is_built(tmp_path: pathlib.Path) -> None:
    sums: set[str] = set()

    for name in ("here", "elsewhere/and/deeper"):
        copy = tmp_path / name / "source"
        ignore = shutil.ignore_patterns(
            ".*", "__pycache__", "tests", "benchmarks", "build", "dist"
        )
        shutil.copytree(ROOT, copy, ignore=ignore)

        for path in copy.rglob("*"):
            path.touch()  # when it was checked out says nothing

        command = [sys.executable, "-m", "build", "--no-isolation", "--wheel"]
        subprocess.run(
            [*command, "--outdir", str(tmp_path / name), str(copy)],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
            check=True,
            capture_output=True,
        )
        sums.add(hashlib.sha256(wheel_of(tmp_path / name).read_bytes()).hexdigest())

    assert len(sums) == 1


def files_below(*folders: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_of(built: pathlib.Path) -> pathlib.Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_templates_and_static_files_only(
    built: pathlib.Path,
) -> None:
    expected = files_below("flask_credly") | {
        f"flask_credly/{name}" for name in files_below("templates", "static")
    }

    with zipfile.ZipFile(wheel_of(built)) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert found == expected


@pytest.mark.slow
def test_the_sdist_can_be_developed_from(built: pathlib.Path) -> None:
    (path,) = built.glob("*.tar.gz")

    with tarfile.open(path) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}

    assert found >= files_below("flask_credly", "templates", "static", "tests")
    assert found >= files_below("example_app")
    assert found >= {"pyproject.toml", "README.md", "LICENSE", "CHANGES.md", "Makefile"}


USE = """
import importlib.util
import re
import sys

sys.path[:0] = sys.argv[1:]

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_credly import Credly

app = Flask("host")
app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://")
db, credly = SQLAlchemy(app), Credly()
credly.courses(lambda: [])
credly.is_admin(lambda: True)
credly.init_app(app)

with app.app_context():
    db.create_all()

page = app.test_client().get("/integrations/")
assert "Set Up" in page.text, page.text
urls = re.findall(r'(?:src|href)="(/integrations/static/[^"]+)"', page.text)
assert any("vendor/htmx" in url for url in urls) and len(urls) == 3, urls

for url in urls:
    assert app.test_client().get(url, buffered=True).status_code == 200, url

print(sys.modules["flask_credly"].__file__)
print([name for name in ("templates", "static", "tests", "example_app", "docs")
       if importlib.util.find_spec(name)])
"""


def use(*path: pathlib.Path | str) -> list[str]:
    """Use the extension from these folders, without this environment's own checkout."""
    libraries = sysconfig.get_path("purelib")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", USE, *map(str, path), libraries],
        cwd=os.sep,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_an_installed_wheel_finds_its_files(
    built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run(
        [*install, "--quiet", "--target", str(tmp_path), str(wheel_of(built))],
        check=True,
    )
    where, stray = use(tmp_path)

    assert where == str(tmp_path / "flask_credly/__init__.py")
    assert stray == "[]"


CONSUMER = """
import datetime as dt

from flask import Flask
from flask_credly import badge_issued
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import jobs
from flask_credly import Member
from flask_credly.testing import CredlySimulator

credly = Credly()


@credly.courses
def courses() -> list[Course]:
    return [Course(id="py-101", title="Python 101")]


@credly.is_admin
def is_admin() -> bool:
    return True


@credly.member
def member(member_id: str) -> Member | None:
    return None


def complete(app: Flask, at: dt.datetime) -> None:
    ada = Member(id="42", email="ada@example.org", first_name="Ada", last_name="E")
    course_completed.send(app, member=ada, course_id="py-101", completed_at=at)
    jobs.drain()


@badge_issued.connect
def issued(app: Flask, *, badge_id: str, **given: str) -> None:
    print(badge_id, CredlySimulator().badges)


def create_app() -> Flask:
    app = Flask(__name__)
    credly.init_app(app)
    reveal_type(courses())
    return app
"""


@pytest.mark.slow
def test_a_host_is_checked_against_our_types(
    built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # An environment with the wheel, and what it needs from ours.
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_path("purelib"))

    with zipfile.ZipFile(wheel_of(built)) as wheel:
        wheel.extractall(site)

    (tmp_path / "consumer.py").write_text(CONSUMER)
    (tmp_path / "wrong.py").write_text(
        "from flask_credly import Member\nMember(id=42)\n"
    )

    def check(name: str) -> str:
        options = ["--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
        options += ["--python-executable", str(environment / "bin/python")]
        return subprocess.run(
            [sys.executable, "-m", "mypy", *options, name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        ).stdout

    said = check("consumer.py")
    assert 'Revealed type is "list[flask_credly.catalog.Course]"' in said
    assert "error:" not in said
    assert "Success: no issues found" in said
    assert 'Argument "id" to "Member" has incompatible type' in check("wrong.py")


@pytest.mark.slow
def test_a_bare_checkout_finds_its_files() -> None:
    where, _ = use(ROOT)

    assert where == str(PACKAGE / "__init__.py")


def test_the_version_is_written_once_and_has_its_changes() -> None:
    (version,) = re.findall(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )

    assert f"## {version}\n" in (ROOT / "CHANGES.md").read_text()


def test_no_file_of_the_project_names_a_package_index() -> None:
    for name in ("pyproject.toml", "requirements-dev.txt", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|https?://[^ ]*simple", text), name
