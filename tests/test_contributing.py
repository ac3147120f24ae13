"""The pages for contributors name what there is."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import tomllib

from test_packaging import ROOMS

ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))


def test_the_way_of_a_completion_leads_through_modules_that_exist() -> None:
    named = set(re.findall(r"`(flask_credly\.[a-z_.]+)`", ARCHITECTURE))

    assert len(named) > 10
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_the_architecture_is_short_and_names_every_room() -> None:
    rooms = ARCHITECTURE[ARCHITECTURE.index("## Rooms") :]
    first_cells = re.findall(r"^\| (`.+?`) \|", rooms, re.M)
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]

    assert len(ARCHITECTURE.splitlines()) <= 135
    assert named == [each for each in ROOMS if each != "__init__"]


def test_where_to_put_something_names_files_and_lists_that_exist() -> None:
    start = ARCHITECTURE.index("## Where to put")
    text = ARCHITECTURE[start : ARCHITECTURE.index("## Rooms")]
    package = ROOT / "flask_credly"
    files = set(re.findall(r"`([a-z/]+\.py)`", text))
    lists = re.findall(r"`([A-Z]\w+)` in `([a-z/]+\.py)`", text)

    assert len(files) > 8 and len(lists) > 3
    assert [name for name in sorted(files) if not (package / name).exists()] == []

    for name, path in lists:
        source = (package / path).read_text()
        assert re.search(rf"^(class )?{name}\b", source, re.M), name


def test_every_command_for_contributors_is_named_and_exists() -> None:
    named = set(re.findall(r"`make ([a-z-]+)", CONTRIBUTING))

    assert named <= COMMANDS
    assert COMMANDS - named == {"demo", "check", "clean"}
    assert COMMANDS == set(re.findall(r"^# make ([a-z-]+)", MAKEFILE, re.M)) | {
        "check",
        "clean",
        "format",
    }


def test_the_files_to_touch_exist() -> None:
    # Not what stands before a file's name in a command.
    words = re.findall(r"[\w./-]+/[\w./-]*|\w[\w.-]*\.(?:md|toml|txt)", CONTRIBUTING)
    paths = {word.rstrip(".") for word in words} - {
        "SECURITY.md",
        ".venv/bin/pytest",
        ".venv/bin/python",
    }

    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_names_in_the_lists_are_those_of_the_code() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    names = set(re.findall(r"CREDLY_TEST_\w+", CONTRIBUTING))

    assert names
    assert [name for name in names if f'"{name}"' not in tests] == []

    for name, path in {
        "SCREENS": "tests/test_browser.py",
        "POINTS": "tests/test_machine.py",
        "def from_config": "flask_credly/settings.py",
        "def fail": "flask_credly/testing/manners.py",
    }.items():
        assert name.removeprefix("def ") in CONTRIBUTING
        assert re.search(rf"^ *{name}\b", (ROOT / path).read_text(), re.M), name


def test_the_oldest_versions_are_those_of_the_project() -> None:
    (script,) = re.findall(r"sed -n '(.+)' pyproject.toml", MAKEFILE)
    found = subprocess.run(
        ["sed", "-n", script.replace("$$", "$"), str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert found == [each.replace(">=", "==") for each in project["dependencies"]]


def test_every_release_says_what_is_incompatible() -> None:
    text = (ROOT / "CHANGES.md").read_text()
    releases = re.split(r"^## ", text, flags=re.M)[1:]

    assert releases
    assert [each for each in releases if "\n### Incompatible\n" not in each] == []
