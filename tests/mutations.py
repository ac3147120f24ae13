"""``python -m tests.mutations``: breaks a line of the product that matters, in a copy,
and sees whether a test notices. Takes half an hour; ``--only claim`` is quicker.

A mutation that no test notices is one of two: a test is missing, or the line is.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing as t

ROOT = pathlib.Path(__file__).parent.parent

MARKS = "not browser"


class Mutation(t.NamedTuple):
    """One wrong line.

    :param path: The file, in ``flask_credly``.
    :param line: What stands there, once. It may be several lines.
    :param wrong: What is put in its place.
    :param tests: The files of which one must fail.
    """

    path: str
    line: str
    wrong: str
    tests: tuple[str, ...]


DECIDE, CLAIM, SETTLE = "ledger/decide.py", "ledger/claim.py", "ledger/settle.py"
GUARD, JOIN = "admin/guard.py", "completions/host_transaction.py"
WITHDRAWALS, HOST = "ledger/withdrawals.py", "ledger/transitions/host.py"
WORKER, LIFECYCLE = "ledger/transitions/worker.py", "ledger/transitions/lifecycle.py"
TOKEN, MASKING, POLL = "issuing/token.py", "credly/masking.py", "issuing/poll.py"

MUTATIONS = [
    # One request more than the two that are allowed
    Mutation(
        DECIDE,
        "MAX_ATTEMPTS = 2\n",
        "MAX_ATTEMPTS = 3\n",
        ("test_issuing",),
    ),
    # Sent once more without a look whether the badge is there
    Mutation(
        DECIDE,
        'Rule("issue", "issue", "unknown", None, "wait", counts=True,'
        " outcome_unknown=True)",
        'Rule("issue", "issue", "unknown", None, "wait", counts=True,'
        " outcome_unknown=False)",
        ("test_faults",),
    ),
    Mutation(
        DECIDE,
        'Rule("issue", "look-up", "unknown", None, "wait")',
        'Rule("issue", "look-up", "unknown", None, "go on")',
        ("test_faults",),
    ),
    # Everything is sent into an outage
    Mutation(
        DECIDE,
        'Rule("issue", "issue", "unavailable", None, "at once", close="unavailable")',
        'Rule("issue", "issue", "unavailable", None, "at once")',
        ("test_issuing", "test_faults"),
    ),
    # What is not due is taken
    Mutation(
        CLAIM,
        "        Issuance.due_at <= now,\n",
        "        Issuance.due_at.is_not(None),\n",
        ("test_issuing", "test_faults"),
    ),
    # A paused or removed account's rows are taken
    Mutation(
        CLAIM,
        "        Issuance.organization_id == gate.organization_id,\n"
        "        gates.is_open(gate.tenant, gate.generation, now),\n",
        "        Issuance.organization_id == gate.organization_id,\n",
        ("test_issuing", "test_connection", "test_faults"),
    ),
    # A request is counted twice where the answer to a commit was lost
    Mutation(
        CLAIM,
        "            Issuance.attempts == attempts,\n",
        "",
        ("test_faults", "test_issuing"),
    ),
    # What was withdrawn in a worker's hands is issued all the same
    Mutation(
        CLAIM,
        '            sa.or_(Issuance.action == "revoke",'
        " Issuance.withdrawn_at.is_(None)),\n",
        "",
        ("test_withdrawn",),
    ),
    # What Credly names when it refuses several is sent again without a look
    Mutation(
        "issuing/sender.py",
        "request.row.allows_duplicates and not unheard",
        "request.row.allows_duplicates and number != named and not unheard",
        ("test_batches",),
    ),
    # A row that kills its worker takes others along
    Mutation(
        CLAIM,
        "if row.crashes < POISON_THRESHOLD]",
        "if row.crashes <= POISON_THRESHOLD]",
        ("test_issuing", "test_faults", "test_worker"),
    ),
    # A worker's death uses up the retry
    Mutation(
        CLAIM,
        "        worker.uncount_attempts(connection, tenant, dead)\n",
        "",
        ("test_issuing", "test_faults"),
    ),
    # A badge is taken for this row's that is another's
    Mutation(
        CLAIM,
        "return frozenset(id_ for id_ in found if id_)",
        "return frozenset()",
        ("test_faults", "test_issuing", "test_completed_again"),
    ),
    # A death is not counted
    Mutation(
        WORKER,
        "sa.case((IS_SENDING, 1), else_=0)",
        "sa.case((IS_SENDING, 0), else_=0)",
        ("test_issuing", "test_faults"),
    ),
    # What Remove has ended begins again
    Mutation(
        WORKER,
        '    if values.get("state") in (None, "failed"):\n'
        "        this = this.where(IS_OPEN)\n",
        "",
        ("test_connection", "test_faults"),
    ),
    # Any worker saves, whoever has the lease
    Mutation(
        WORKER,
        '        ROWS.c.lease == sa.bindparam("held_lease"),\n',
        "",
        ("test_issuing", "test_faults"),
    ),
    # A viewer does what only an admin may
    Mutation(
        GUARD,
        "    return to_look\n",
        "    return True\n",
        ("test_roles",),
    ),
    # What stands for True lets in
    Mutation(
        GUARD,
        "    if allowed is True or allowed is False:\n        return allowed\n",
        "    if allowed == True or allowed is False:  # noqa: E712\n"
        "        return bool(allowed)\n",
        ("test_guard",),
    ),
    # A sibling's page sends forms
    Mutation(
        GUARD,
        'return site not in ("same-origin", "none")',
        'return site not in ("same-origin", "same-site", "none")',
        ("test_guard", "test_threats"),
    ),
    # A viewer reads addresses
    Mutation(
        GUARD,
        'return text if may_act() else _ADDRESS.sub(r"\\1…@", text)',
        "return text",
        ("test_roles",),
    ),
    # An admin's rights stay for the next request of the same context
    Mutation(
        GUARD,
        'return bool(g.get(_ROLE) == (_this_request(), "admin"))',
        'return bool(g.get(_ROLE, (None, ""))[1] == "admin")',
        ("test_roles", "test_guard"),
    ),
    # A completion is recorded apart from what the host has not flushed yet
    Mutation(
        JOIN,
        "if not always and not _has_pending(session) and not any(",
        "if not always and not any(",
        ("test_completion", "test_host_transactions"),
    ),
    # A savepoint that was rolled back still counts as a write
    Mutation(
        JOIN,
        "watched.wrote, count = watched.savepoints.pop()",
        "_, count = watched.savepoints.pop()",
        ("test_faults",),
    ),
    # Of two transactions, any
    Mutation(
        JOIN,
        "if len(found) == 1 else None",
        "if found else None",
        ("test_host_transactions",),
    ),
    # What was rolled back is announced
    Mutation(
        JOIN,
        "            each.committed = committed\n",
        "            each.committed = True\n",
        ("test_host_transactions", "test_completion"),
    ),
    # An outcome is thrown away as if it were saved
    Mutation(
        SETTLE,
        "!= len(alike):\n        raise LeaseLost",
        "> len(alike):\n        raise LeaseLost",
        ("test_issuing", "test_faults"),
    ),
    # An outage uses up the retry
    Mutation(
        SETTLE,
        "        if not rule.counts:\n",
        "        if False:\n",
        ("test_issuing", "test_faults"),
    ),
    # A badge that was called failed is not looked for any more
    Mutation(
        SETTLE,
        "            values |= last_look\n",
        "            pass\n",
        ("test_issuing", "test_faults"),
    ),
    # A new badge is issued though the old one was not revoked
    Mutation(
        SETTLE,
        'elif then in ("failed", "replaced"):\n',
        'elif then in ("replaced",):\n',
        ("test_actions",),
    ),
    # One too many is revoked without a person
    Mutation(
        WITHDRAWALS,
        "        .limit(MOST + 1)\n",
        "        .limit(MOST)\n",
        ("test_withdrawn",),
    ),
    # A person decides about others than were seen
    Mutation(
        WITHDRAWALS,
        "    if not waiting or waiting != number:\n",
        "    if not waiting or waiting < number:\n",
        ("test_withdrawn",),
    ),
    # More are revoked while a person has not decided
    Mutation(
        WITHDRAWALS,
        "if _any_waits(connection, tenant) or not gates",
        "if not gates",
        ("test_withdrawn",),
    ),
    # The message of a completion comes once more, after it was withdrawn
    Mutation(
        HOST,
        "ROWS.c.withdrawn_at < completed_at",
        "ROWS.c.withdrawn_at <= completed_at",
        ("test_withdrawn",),
    ),
    # A later state of a badge is undone by an answer that is older
    Mutation(
        LIFECYCLE,
        "        return at > known_at\n",
        "        return True\n",
        ("test_poll", "test_afterwards"),
    ),
    # A badge is given up at the first answer that there is none
    Mutation(
        LIFECYCLE,
        "ROWS.c.missed_at <= read_at - MISSES_APART",
        "ROWS.c.missed_at <= read_at",
        ("test_poll",),
    ),
    # Another badge's state is written down
    Mutation(
        LIFECYCLE,
        "if badge.template_id not in (None, row.template_id):",
        "if False:",
        ("test_afterwards",),
    ),
    # The token that was refused is used again
    Mutation(
        TOKEN,
        "row.token_version > rejected and",
        "row.token_version >= rejected and",
        ("test_issuing", "test_time", "test_faults"),
    ),
    # The account is called expired for an old token's refusal
    Mutation(
        TOKEN,
        "        if refused.version <= self._rejected:\n",
        "        if refused.version < self._rejected:\n",
        ("test_issuing", "test_time", "test_faults"),
    ),
    # Two workers fetch a token at once
    Mutation(
        TOKEN,
        "_this(row).where(free).values(token_fetch_until=until)",
        "_this(row).values(token_fetch_until=until)",
        ("test_issuing", "test_time", "test_faults"),
    ),
    # Half a secret is shown where a text was cut
    Mutation(
        MASKING,
        "return text[:-_MARGIN] if cut else text",
        "return text",
        ("test_client", "test_threats"),
    ),
    # A secret within what was encoded is shown
    Mutation(
        MASKING,
        "for before in range(3):",
        "for before in range(1):",
        ("test_client", "test_threats"),
    ),
    # News of a list that is in no order are missed
    Mutation(
        POLL,
        "if page.is_last or poll.unsorted or _is_known(poll, page):",
        "if page.is_last or _is_known(poll, page):",
        ("test_poll",),
    ),
    # A list is read on with the credentials before the last
    Mutation(
        POLL,
        "            and gate.generation == self._gate.generation\n",
        "",
        ("test_poll",),
    ),
    # A backfill records whom it has read before they were erased
    Mutation(
        "ledger/backfills.py",
        "completions = [each for each in completions if not is_erased(each.member.id)]",
        "pass",
        ("test_backfill",),
    ),
    # An undo of a removal issues a badge whose completion was withdrawn
    Mutation(
        SETTLE,
        "        Issuance.withdrawn_at.is_(None),\n",
        "",
        ("test_withdrawn",),
    ),
    # An undo does not bring back what a worker has in its hands
    Mutation(
        SETTLE,
        "        sa.not_(sa.exists().where(IS_MAPPED)),\n",
        "",
        ("test_retrying",),
    ),
    # What is cancelled during a second removal is taken for the first one's
    Mutation(
        "accounts/mappings.py",
        "    # What workers cancel is cancelled after this, or not at all.\n"
        "    gates.lock(connection, tenant)\n",
        "",
        ("test_retrying",),
    ),
    # An undo brings back what was renewed meanwhile
    Mutation(
        "ledger/retrying.py",
        "        sa.not_(sa.and_(Issuance.renewal, issuances.HAS_LATER)),\n",
        "",
        ("test_retrying",),
    ),
    # Or what an earlier removal has cancelled
    Mutation(
        "ledger/retrying.py",
        "        Issuance.settled_at >= since,\n",
        "",
        ("test_retrying",),
    ),
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--only", default="", help="a part of a path, in flask_credly")
    parser.add_argument("--at-once", action="store_true", help="do not try them as is")
    given = parser.parse_args(arguments)
    chosen = [each for each in MUTATIONS if given.only.lower() in each.path]
    survived = []

    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        files = sorted({name for each in chosen for name in each.tests})

        if not given.at_once and not _passes(copy, files):
            print("These fail as it is:", *files)
            return 2

        for each in chosen:
            path = copy / "flask_credly" / each.path
            right = path.read_text()

            if right.count(each.line) != 1:
                raise ValueError(f"Not there once: {each.line!r} in {path}.")

            path.write_text(right.replace(each.line, each.wrong))
            alive = _passes(copy, each.tests)
            path.write_text(right)
            print("SURVIVED" if alive else "noticed ", each.path, repr(each.line))
            sys.stdout.flush()

            if alive:
                survived.append(each)

    print(f"{len(survived)} of {len(chosen)} survived.")
    return 1 if survived else 0


def _passes(copy: pathlib.Path, files: t.Iterable[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", MARKS]
    command += ["-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{name}.py" for name in files)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest ended with {done.returncode}.")

    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
