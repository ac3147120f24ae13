"""``python -m tests.promises``: what is promised, and the tests that prove it.

- A fault, a threat and a requirement of ASVS name theirs in the documentation.
- A row of the decision table is proven by the test with its name.
- A message of the error log is proven by each test that spells it, and a check of the
  doctor by each of the doctor's tests that does.
"""

from __future__ import annotations

import ast
import collections
import collections.abc as cabc
import functools
import pathlib
import re
import sys
import typing as t

from flask_credly.doctor import _CHECKS
from flask_credly.ledger.decide import RULES
from flask_credly.ledger.log import ERRORS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("faults", "threats", "asvs")
DECISIONS = "test_decide.py::test_each_answer_has_the_decided_consequence"


class Promise(t.NamedTuple):
    """What is promised.

    :param kind: Where: "faults", "threats", "asvs", "decisions", "log" or "doctor".
    :param words: What it says.
    :param tests: What proves it, as ``file.py::name``.
    """

    kind: str
    words: str
    tests: tuple[str, ...]


def promises() -> list[Promise]:
    """List all there are."""
    spelled = _spelled()
    found = [each for page in PAGES for each in _read(page)]
    found += [
        Promise(
            "decisions",
            f"{rule.action}, {rule.phase}, {rule.answer}: {rule.then}",
            (DECISIONS,),
        )
        for rule in RULES
    ]
    found += [Promise("log", each, tuple(spelled[each])) for each in ERRORS]
    found += [
        Promise(
            "doctor",
            name,
            tuple(each for each in spelled[name] if "doctor" in each),
        )
        for name, *_ in _CHECKS
    ]
    return found


def _read(page: str) -> cabc.Iterator[Promise]:
    """Read the tables of a page of which the last column names tests."""
    column = ""

    for line in (ROOT / f"docs/{page}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]

        if not line.startswith("|"):
            column = ""
        elif not column:
            column = cells[-1]
        elif column.startswith("test") and line.startswith("| "):
            tests = re.findall(r"`(test_\w+\.py::\w+)`", cells[-1])

            # A requirement may have a reason instead.
            if tests or column == "test":
                yield Promise(page, " ".join(filter(None, cells[:-1])), tuple(tests))


def known() -> cabc.Set[str]:
    """List the tests that there are."""
    return _tests().keys()


def unproven() -> list[Promise]:
    """Find what no test proves, or one that does not exist."""
    return [each for each in promises() if not each.tests or set(each.tests) - known()]


def _spelled() -> collections.defaultdict[str, list[str]]:
    found = collections.defaultdict(list)

    for test, texts in _tests().items():
        for text in texts:
            found[text].append(test)

    return found


@functools.cache
def _tests() -> dict[str, set[str]]:
    """List all tests, and the texts in each and in what it is run with."""
    found: dict[str, set[str]] = {}

    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text())
        named = {
            target.id: _texts(node.value)
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value
            for target in (
                node.targets if isinstance(node, ast.Assign) else [node.target]
            )
            if isinstance(target, ast.Name)
        }

        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                texts = _texts(node)

                for decorator in node.decorator_list:
                    for each in ast.walk(decorator):
                        if isinstance(each, ast.Name):
                            texts |= named.get(each.id, set())

                found.setdefault(f"{path.name}::{node.name}", set()).update(texts)

    return found


def _texts(node: ast.AST) -> set[str]:
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def main() -> int:
    for each in promises():
        print(f"{each.kind}: {each.words}")
        print("".join(f"    {test}\n" for test in each.tests), end="")

    for each in (left := unproven()):
        print(f"NOT PROVEN: {each.kind}: {each.words}", file=sys.stderr)

    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
