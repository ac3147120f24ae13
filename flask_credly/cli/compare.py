"""The command that compares the ledger with Credly and the application."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import json
import shlex
import sys
import typing as t

import click

from ..ledger import audit
from ..ledger import comparisons
from ..ledger.comparisons import Bucket
from ..ledger.comparisons import DIFFERENCES
from ..ledger.comparisons import REPAIRED
from ..state import Community
from .words import as_time
from .words import get_community
from .words import of_tenant
from .words import say

if t.TYPE_CHECKING:
    from ..issuing.comparison import Comparison
    from ..issuing.reconcile import Result
    from ..ledger.runs import Run


_IN_WORDS: dict[str, tuple[str, str]] = {
    "not_recorded": ("Completed, but not recorded here", ""),
    "waiting_too_long": (
        "Queued for more than an hour",
        "Start a worker, or run: flask credly sweep",
    ),
    "unknown_here": ("Issued at Credly, but not in the ledger", ""),
    "failed_here": ("Issued at Credly, but not issued in the ledger", ""),
    "state_differs": ("State or expiry differs from Credly", ""),
    "not_at_credly": (
        "Issued, but not found at Credly",
        'On the badge\'s page: "Reissue", if the member should have it.',
    ),
    "differs": (
        "Template, address or date differs from Credly",
        'On the badge\'s page: "Correct".',
    ),
    "twice": (
        "A second badge of a template that allows one per member",
        'On the badge\'s page: "Revoke", if one is too many.',
    ),
    "no_longer_completed": (
        "Issued, but your app no longer says that the course was completed",
        'On the badge\'s page: "Revoke", if the member should not have it.',
    ),
}


_SHOWN = 10


@click.option(
    "--since",
    callback=as_time,
    metavar="DATE",
    help="Only what was completed from then on; in UTC, unless it says otherwise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--repair",
    "bucket",
    type=click.Choice(REPAIRED),
    help="Repair these. Needs --confirm.",
)
@click.option(
    "--confirm", type=int, metavar="N", help="How many there are, as it was shown."
)
@of_tenant
def reconcile(
    since: dt.datetime | None,
    as_json: bool,
    bucket: Bucket | None,
    confirm: int | None,
    tenant: str | None,
) -> None:
    """Compare your completions, the ledger and Credly, badge by badge.

    It changes nothing, unless it is told to repair something. Its exit status is 0 if
    all agree, 1 if something differs, and 2 if it could not read to the end.
    """
    from ..issuing import reconcile as reconciling

    if (bucket is None) != (confirm is None):
        raise click.UsageError("--repair and --confirm go together.")

    state = get_community(tenant)

    try:
        if bucket is not None and confirm:
            _compare_and_repair(state, since, bucket, confirm, as_json)
            return

        with reconciling.compare(state, since, _count_up) as found:
            if bucket is None:
                _print_comparison(found, as_json, _again(since, tenant))
            else:
                _repair(state, found, bucket, 0, as_json)
    except LookupError as e:
        raise _NotRead(str(e)) from None


def _again(since: dt.datetime | None, tenant: str | None) -> str:
    """Get the command that compares the same once more."""
    words = ["flask", "credly", "reconcile"]
    words += [] if since is None else ["--since", since.isoformat()]
    words += [] if tenant is None else ["--tenant", tenant]
    return shlex.join(words)


def _count_up(badges: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{badges:,} badges were read.", nl=False, err=True)


class _NotRead(click.ClickException):
    exit_code = 2


def _print_comparison(found: Result, as_json: bool, command: str) -> t.NoReturn:

    counts = found.comparison.counts()
    number = sum(counts[each] for each in DIFFERENCES)

    if as_json:
        values = {
            "complete": found.complete,
            "counts": counts,
            "moving": found.comparison.moving,
            "host": found.with_host,
            "unread": [each.detail for each in found.unread],
        }
        say(json.dumps(values))
        sys.exit(1 if number and found.complete else 0 if found.complete else 2)

    for each in DIFFERENCES:
        if not counts[each]:
            continue

        words, remedy = _IN_WORDS[each]
        say(f"{words}: {counts[each]:,}")
        say(f"    {_first_few(found.comparison, each, counts[each])}")

        if each in REPAIRED:
            remedy = f"{command} --repair {each} --confirm {counts[each]}"

        say(f"    → {remedy}")

    if counts["unknown_here"]:
        say(
            "If this database comes from a backup, run first: flask credly restored\n"
            "Then no badge is issued that Credly has already."
        )

    if not number:
        where = "" if found.complete else " in what could be read"
        say(f"No differences were found{where}.")

    say(f"Badges that agree: {counts['agreed']:,}")
    say(f"Badges at Credly that are not this site's: {counts['not_ours']:,}")

    if found.comparison.moving:
        say(f"Changing just now, and not compared: {found.comparison.moving:,}")

    if not found.with_host:
        say(
            "Your app was not asked who completed what: there is no"
            " @credly.past_completions hook."
        )

    if found.complete:
        sys.exit(1 if number else 0)

    for reason in found.unread:
        where = f" (page {reason.page + 1})" if reason.page else ""
        say(f"Not read to the end{where}: {reason.detail}", err=True)

    say("Nothing is said about what is missing there.", err=True)
    sys.exit(2)


def _first_few(comparison: Comparison, bucket: Bucket, number: int) -> str:
    """Name the first of what differs, by what says nothing of a person."""
    if bucket == "not_recorded":
        by_course = comparison.count_by_course(bucket).items()
        named = [f"{title} ({count:,})" for title, count in by_course][:_SHOWN]
        return ", ".join(named)

    named = [
        f"badge {each.row_id}" if each.row_id else f"{each.badge_id}"
        for each in comparison.differences(bucket, _SHOWN)
    ]
    return ", ".join(named) + (", …" if number > len(named) else "")


def _compare_and_repair(
    state: Community,
    since: dt.datetime | None,
    bucket: Bucket,
    confirm: int,
    as_json: bool,
) -> None:
    from ..issuing import compare
    from ..issuing import reconcile as reconciling

    if (run := comparisons.take_up(state.engine, state.tenant)) is None:
        raise click.ClickException(
            "Nothing was repaired: a comparison with Credly is running. Wait for its"
            " end, or stop it on its page."
        )

    try:
        with compare.taken_up(state, run) as go_on:

            def note(badges: int) -> None:
                _count_up(badges)
                go_on()

            with reconciling.compare(state, since, note, go_on) as found:
                _repair(state, found, bucket, confirm, as_json, run, go_on)
    except compare.Lost:
        raise click.ClickException(
            "The comparison was stopped. What was repaired stays so."
        ) from None


def _repair(
    state: Community,
    found: Result,
    bucket: Bucket,
    confirm: int,
    as_json: bool,
    run: Run | None = None,
    go_on: cabc.Callable[[], None] = lambda: None,
) -> None:
    from ..issuing import reconcile as reconciling

    number = found.comparison.counts()[bucket]

    if not found.complete:
        raise _NotRead(
            "Nothing was repaired, as not all could be read. "
            + " ".join(each.detail for each in found.unread)
        )

    if number != confirm:
        raise click.ClickException(
            f"Nothing was repaired: there are {number:,} now, and not {confirm:,}."
            " Look at them again."
        )

    differences = list(found.comparison.differences(bucket, comparisons.AT_MOST))

    try:
        done = reconciling.repair(
            state,
            bucket,
            differences,
            by=audit.COMMAND_LINE,
            note=lambda each, outcome: go_on(),
            run=run,
        )
    except reconciling.Unread as e:
        raise click.ClickException(
            f"Not all could be repaired. {e.detail} What was repaired stays so."
        ) from None

    if as_json:
        left = number - len(differences)
        say(json.dumps({**dataclasses.asdict(done), "left": left}))
        return

    say(f"{done.done:,} repaired.")

    if done.skipped:
        say(f"{done.skipped:,} changed since the comparison and were left alone.")

    if done.no_course:
        say(
            f"{done.no_course:,} were left: no course, or more than one, is mapped to"
            " their badge template."
        )

    if number > len(differences):
        say(
            f"{number - len(differences):,} are left: at most {comparisons.AT_MOST} are"
            " repaired at once. Run it again."
        )
