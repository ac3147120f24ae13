"""``flask credly …``"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import re
import shlex
import sys
import typing as t

import click
import sqlalchemy as sa
from flask.cli import AppGroup
from flask.cli import ScriptInfo
from flask.logging import default_handler
from flask.logging import has_level_handler

from . import accounts
from . import keys
from .admin.query import MAX_ID
from .admin.undo import LEFT_ALONE
from .catalog import DEFAULT_TENANT
from .catalog import Kind
from .catalog import KINDS
from .catalog import read_id
from .errors import CredlyError
from .issuing import backfill as past
from .issuing import notifier
from .issuing import unrecorded
from .issuing import workers
from .issuing.trouble import explain
from .issuing.trouble import WrongQueue
from .ledger import actions
from .ledger import audit
from .ledger import backfills
from .ledger import comparisons
from .ledger import issuances
from .ledger import overview
from .ledger import retrying
from .ledger import tables
from .ledger import turns
from .ledger import undone
from .ledger import undos
from .ledger import unrecorded as counted
from .ledger.comparisons import Bucket
from .ledger.comparisons import DIFFERENCES
from .ledger.comparisons import REPAIRED
from .ledger.paging import Session
from .ledger.transaction import in_session
from .models import Issuance
from .state import Community
from .state import get_state

if t.TYPE_CHECKING:
    from .doctor import Finding
    from .issuing.comparison import Comparison
    from .issuing.reconcile import Result

logger = logging.getLogger("flask_credly")

T = t.TypeVar("T")


@contextlib.contextmanager
def in_words(ctx: click.Context) -> cabc.Iterator[None]:
    """Say in words what goes wrong in a command."""
    try:
        yield
    except click.ClickException as e:
        if not isinstance(e, click.UsageError):  # that is the reader's own
            raise type(e)(_printable(e.message)) from None

        raise
    except (sa.exc.OperationalError, sa.exc.ProgrammingError) as e:
        # Its text may hold an address with a password.
        logger.debug("The command failed.", exc_info=True)

        with ctx.ensure_object(ScriptInfo).load_app().app_context():
            if tables.explain(get_state().engine, e):
                raise click.ClickException(tables.MISSING) from None

        raise click.ClickException(
            f"The database cannot be reached ({type(e.orig or e).__name__})."
            " Run flask credly doctor for the cause."
        ) from None


def _say(text: str, *, err: bool = False) -> None:
    click.echo(_printable(text), err=err)


# Control characters, what reorders a line, what ends one elsewhere than we do, and what
# no terminal's encoding has.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _printable(text: str) -> str:
    """Write out what a terminal would take for a command of its own. Names of errors,
    workers and members come from elsewhere. What is JSON stays it.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextlib.contextmanager
def _queue_in_use() -> cabc.Iterator[None]:
    """Say in words what is wrong with the queue."""
    from redis import RedisError

    try:
        yield
    except (RedisError, WrongQueue) as e:
        found = explain(e, get_state().settings)
        raise click.ClickException(f"{found} Badges stay queued.") from None


def _of_tenant(command: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Let a command be told which community it is for."""
    return click.option("--tenant", help="Only this community.")(command)


def _community(tenant: str | None) -> Community:
    """Get the community that a command is for.

    :raises click.UsageError: There are several, and none is named; or no such one.
    """
    state = get_state()

    if not state.has_tenants:
        if tenant not in (None, DEFAULT_TENANT):
            raise click.UsageError(
                "This app has one community. Omit --tenant, or register a"
                " function with '@credly.tenant'."
            )

        return state.of(DEFAULT_TENANT)

    # Those that were removed too: what is done to a member's badges is not to be done
    # to those of another member.
    known = turns.known(state.engine)

    if tenant is not None:
        if tenant not in known:
            raise click.UsageError(f"There is no data for a community {tenant!r}.")

        return state.of(tenant)

    if len(known) != 1:
        raise click.UsageError(
            "Say which community: --tenant"
            f" {'ID' if len(known) > 20 or not known else '|'.join(known)}."
        )

    return state.of(known[0])


def _check_connected(state: Community) -> None:
    if in_session(state.engine, accounts.get, state.tenant) is None:
        raise click.ClickException(
            "Credly is not connected. An admin can connect it at"
            f" {state.page('/credly')}."
        )


def add_commands(group: AppGroup) -> None:
    """Add all commands to the group of one application."""
    group.command("worker")(worker)
    group.command("status")(status)
    group.command("sweep")(sweep)
    group.command("sync")(sync)
    group.command("poll")(poll)
    group.command("retry")(retry)
    group.command("revoke")(revoke)
    group.command("revoke-many")(revoke_many)
    group.command("reissue")(reissue)
    group.command("backfill")(backfill)
    group.command("dismiss")(dismiss)
    group.command("doctor")(doctor)
    group.command("reconcile")(reconcile)
    group.command("restored")(restored)
    group.command("rotate-keys")(rotate_keys)
    group.command("prune")(prune)
    group.command("erase-member")(erase_member)
    group.command("export-member")(export_member)


@click.option("--burst", is_flag=True, help="Stop when no badge is due.")
def worker(burst: bool) -> None:
    """Run a worker that issues queued badges."""
    from .issuing.worker import work

    # What is said at INFO is for whoever looks on, unless the host logs in its own way.
    if not has_level_handler(logger):
        logger.addHandler(default_handler)
        logger.setLevel(logging.INFO)

    if not burst:
        _say("Issuing queued badges. Press Ctrl-C to stop.", err=True)

    with _queue_in_use():
        work(get_state(), burst=burst)


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--all", "everything", is_flag=True, help="All communities.")
@_of_tenant
def status(as_json: bool, everything: bool, tenant: str | None) -> None:
    """Show queued, issued and failed badges, and what blocks issuing."""
    state = get_state()
    known = turns.tenants(state.engine) if state.has_tenants else [DEFAULT_TENANT]

    if everything or (tenant is None and len(known) != 1):
        names = [*known, *([""] if state.has_tenants else [])]
        found = {each: _status(state.of(each)) for each in names}

        # Completions of which it is not known whose they are.
        if not found.get("", {"unrecorded": True})["unrecorded"]:
            del found[""]

        if as_json:
            _say(json.dumps({"tenants": found}))
            return

        for name, values in found.items():
            _say(f"{name or '(not known)'}:")
            _print_status(values)

        return

    values = _status(_community(known[0] if tenant is None else tenant))

    if as_json:
        _say(json.dumps(values))
    else:
        _print_status(values)


def _status(community: Community) -> dict[str, t.Any]:
    found = in_session(
        community.engine,
        overview.read,
        community.tenant,
        config=community.app.config,
    )
    until = found.paused_until
    missed = unrecorded.read(community)
    return {
        "connection": found.connection,
        "paused_until": until.isoformat() if until else None,
        "pending": found.pending,
        "issued": found.issued,
        "failed": found.failed,
        "held": found.held,
        "accepted": found.accepted,
        "unaccepted": found.unaccepted,
        "revoked": found.revoked,
        "oldest_pending_seconds": found.oldest_pending_seconds,
        "workers": workers.count(community),
        "copy": found.is_copy,
        "unrecorded": missed.number,
        "unrecorded_since": missed.since.isoformat() if missed.since else None,
    }


STATUS_NAMES = {
    "pending": "queued",
    "held": "already held",
    "unaccepted": "not yet accepted",
    "oldest_pending_seconds": "oldest queued seconds",
}
"""What a person reads in place of a key of the JSON: the words of the pages."""


def _print_status(values: dict[str, t.Any]) -> None:
    for key, value in values.items():
        name = STATUS_NAMES.get(key, key.replace("_", " "))
        _say(f"{name:24}{'-' if value is None else value}")


def sweep() -> None:
    """Notify a worker of due badges. A worker also does this itself."""
    from .issuing.sweep import sweep as look

    state = get_state()

    with _queue_in_use():
        due = look(state, notifier.web_queue(state), insist=True)

    _say("Badges are due. A worker was notified." if due else "No badge is due.")


@_of_tenant
def sync(tenant: str | None) -> None:
    """Load the active badge templates from Credly."""
    state = _community(tenant)

    _check_connected(state)

    try:
        count = accounts.sync_templates(state, by=audit.COMMAND_LINE)
    except CredlyError as e:
        raise click.ClickException(
            f"The badge templates could not be loaded. {e.detail}"
        ) from None

    _say(f"Active badge templates: {count}.")


@_of_tenant
def poll(tenant: str | None) -> None:
    """Read from Credly which badges were accepted, declined or revoked.

    A worker does this automatically.
    """
    from .issuing.poll import poll_now

    state = _community(tenant)

    _check_connected(state)

    if not poll_now(state):
        raise click.ClickException(
            "Not all badges could be checked. The connection is paused or"
            " expired, a worker is already checking, or Credly did not respond."
            " The log has the details."
        )

    found = in_session(state.engine, overview.read, state.tenant)
    _say(
        f"{found.issued:,} issued, {found.accepted:,} accepted,"
        f" {found.unaccepted:,} not yet accepted, {found.revoked:,} revoked."
    )


@click.argument("ids", nargs=-1, type=int, metavar="[ID…]")
@click.option("--all", "everything", is_flag=True, help="All failed badges.")
@_of_tenant
def retry(ids: tuple[int, ...], everything: bool, tenant: str | None) -> None:
    """Queue failed badges again, by number."""
    if everything == bool(ids):
        raise click.UsageError("Name the badges or use --all.")

    state = _community(tenant)

    _find(state, ids)
    by = audit.COMMAND_LINE

    if everything:
        tried, run_id = retrying.retry_all(state.engine, state.tenant, by=by)

        if run_id is not None:
            page = state.page("/credly/badges")
            _say(f"A worker queues them again, many at a time. {page} shows how many.")
            _say_if_unheard(notifier.ask_for_undo(state))
            return
    else:
        tried = sum(
            issuances.retry(state.engine, state.tenant, each, by=by) for each in ids
        )

    _say(f"{tried} queued again.")

    if tried:
        _say_if_unheard(notifier.notify(state))


def _say_if_unheard(notified: bool) -> None:
    if not notified:
        _say(
            "Redis cannot be reached. A worker finds the queued badges at its next"
            " sweep."
        )


_REASON = click.option(
    "--reason",
    metavar="TEXT",
    help="The reason. Credly stores it and the member may see it.",
)


def _told(command: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Let a command be told why badges are revoked, and whether members are told."""
    for option in (
        click.option("--silent", is_flag=True, help="Do not notify the member."),
        click.option("--tell", is_flag=True, help="Have Credly notify the member."),
        _REASON,
    ):
        command = option(command)

    return command


_PROBLEMS: dict[actions.Problem, str] = {
    "short": "Give a reason of at least 3 characters: --reason TEXT.",
    "long": "Shorten the reason to 500 characters.",
    "address": "Remove the e-mail address from the reason. The member may see it.",
}


def _read_reason(reason: str | None, tell: bool, silent: bool) -> str:
    if tell == silent:
        raise click.UsageError(
            "Choose --tell or --silent: whether Credly notifies the member."
        )

    return _check_reason(reason)


def _check_reason(reason: str | None) -> str:
    if problem := actions.problem_with(reason or ""):
        raise click.UsageError(_PROBLEMS[problem])

    return reason or ""


def _get(
    state: Community, question: t.Callable[[Session, str, int], T | None], number: int
) -> T | None:
    """Get what has a number, as typed: a database refuses one that no column holds."""
    if abs(number) > MAX_ID:
        return None

    return in_session(state.engine, question, state.tenant, number)


def _find(state: Community, ids: tuple[int, ...]) -> list[Issuance]:
    """Get rows of the ledger.

    :raises click.ClickException: If there is none of one of these numbers.
    """
    rows = []

    for each in dict.fromkeys(ids):
        row = _get(state, issuances.get, each)

        if row is None:
            raise click.ClickException(f"There is no badge {each}.")

        rows.append(row)

    return rows


def _end_actions(state: Community, done: int, left: list[str]) -> None:
    if done:
        _say_if_unheard(notifier.notify(state))

    if left:
        raise click.ClickException("\n".join(left))


@click.argument("ids", nargs=-1, type=int, metavar="ID…", required=True)
@_told
@_of_tenant
def revoke(
    ids: tuple[int, ...],
    reason: str | None,
    tell: bool,
    silent: bool,
    tenant: str | None,
) -> None:
    """Revoke badges by number. A worker sends the revocations.

    A queued badge is skipped instead.
    """
    why = _read_reason(reason, tell, silent)
    state = _community(tenant)
    done = {
        row.id: actions.revoke(
            state.engine,
            state.tenant,
            row.id,
            reason=why,
            tell=tell,
            by=audit.COMMAND_LINE,
        )
        for row in _find(state, ids)
    }
    number = list(done.values()).count
    _say(f"{number('revoke')} queued for revocation, {number('drop')} skipped.")
    left = [
        f"Badge {each} cannot be revoked. Credly has no such badge, or another"
        " action on it is in progress."
        for each, what in done.items()
        if what is None
    ]
    _end_actions(state, len(done) - len(left), left)


@click.argument("ids", nargs=-1, type=int, metavar="ID…", required=True)
@_told
@_of_tenant
def reissue(
    ids: tuple[int, ...],
    reason: str | None,
    tell: bool,
    silent: bool,
    tenant: str | None,
) -> None:
    """Reissue badges to the current address and names of their members.

    A valid badge is revoked first. This requires --reason and --tell or --silent.
    """
    from .issuing import profile

    why = None

    if reason is not None or tell or silent:
        why = _read_reason(reason, tell, silent)

    state = _community(tenant)
    rows = _find(state, ids)

    if why is None and (still := [row.id for row in rows if actions.is_in_force(row)]):
        raise click.UsageError(
            f"Badge {still[0]} is valid and is revoked first. Add --reason TEXT"
            " and --tell or --silent."
        )

    left = []

    for row in rows:
        member = profile.load(state, row) or row
        new_id = actions.issue_again(
            state.engine,
            state.tenant,
            row.id,
            email=member.email,
            first_name=member.first_name,
            last_name=member.last_name,
            reason=why,
            tell=tell if why else None,
            by=audit.COMMAND_LINE,
        )

        if new_id is None:
            left.append(
                f"Badge {row.id} cannot be reissued. It was not issued, there is"
                " a later one, another action on it is in progress, or its course"
                " is no longer mapped."
            )
        else:
            _say(f"Badge {row.id} is reissued as badge {new_id}.")

    _end_actions(state, len(rows) - len(left), left)


def _time(ctx: click.Context, param: click.Parameter, given: str) -> dt.datetime | None:
    if not given:
        return None

    try:
        at = dt.datetime.fromisoformat(given)
        at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return at.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            "Use a time such as 2025-01-31 or 2025-01-31T12:00:00Z."
        ) from None


def _two_kinds(course_id: str) -> click.UsageError:
    return click.UsageError(
        f"A course and a learning path share the id {course_id!r}. Add"
        f" {' or '.join(f'--kind {each}' for each in KINDS)}."
    )


_KIND = click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Which one, if a course and a learning path share the id.",
)

_WHOM: dict[str, tuple[bool, bool]] = {
    "everyone": (True, True),
    "accepted": (False, True),
    "unaccepted": (True, False),
    "nobody": (False, False),
}
"""Whether Credly notifies those who have not accepted the badge, and those who have."""


@click.option(
    "--batch",
    type=int,
    metavar="ID",
    help="The badges of this backfill.",
)
@click.option(
    "--course",
    "course_id",
    metavar="ID",
    help="The badges of the course or learning path with this id.",
)
@_KIND
@click.option(
    "--since",
    callback=_time,
    metavar="TIME",
    help="With --course: only badges requested since this time (UTC by default).",
)
@click.option(
    "--until",
    callback=_time,
    metavar="TIME",
    help="With --course: only badges requested before this time (UTC by default).",
)
@click.option(
    "--confirm",
    type=int,
    metavar="N",
    help="Revoke them. N is the number of badges shown without this option.",
)
@_REASON
@click.option(
    "--tell",
    "whom",
    type=click.Choice([*_WHOM]),
    help="Which members Credly notifies: by whether they have accepted the badge.",
)
@_of_tenant
def revoke_many(
    batch: int | None,
    course_id: str | None,
    kind: Kind | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    confirm: int | None,
    reason: str | None,
    whom: str | None,
    tenant: str | None,
) -> None:
    """Revoke the badges of a backfill or a course. A worker sends the revocations.

    Without --confirm, only shows how many badges there are. Queued badges are skipped
    instead.
    """
    if (batch is None) == (course_id is None):
        raise click.UsageError("Name the badges: --batch ID or --course ID.")

    if batch is not None and (kind or since or until):
        raise click.UsageError("Use --kind, --since and --until with --course only.")

    if confirm is not None:
        reason = _check_reason(reason)

        if whom is None:
            raise click.UsageError(
                f"Say whom Credly notifies: --tell {'|'.join(_WHOM)}."
            )

    state = _community(tenant)
    _check_connected(state)

    if batch is not None:
        selection, found, title = _badges_of_batch(state, batch)
    else:
        selection, found, title = _badges_of_course(
            state, _read_id(course_id or "", "--course"), kind, since, until
        )

    _print_preview(found, title)

    if not found.number and not confirm:
        _say("There are no badges to revoke.")
        return

    if confirm is None or whom is None:
        _say(
            f"To revoke these badges, add --confirm {found.number} --reason TEXT"
            f" --tell {'|'.join(_WHOM)}. You cannot undo this."
        )
        return

    _begin_undo(state, selection, found, title, confirm, reason or "", _WHOM[whom])


def _preview(state: Community, selection: undos.Selection) -> undos.Preview:
    return in_session(state.engine, undos.preview, state.tenant, selection)


def _badges_of_batch(
    state: Community, batch: int
) -> tuple[undos.Selection, undos.Preview, str]:
    progress = _get(state, backfills.progress, batch)

    if progress is None:
        raise click.ClickException(f"There is no backfill {batch}.")

    selection = undos.Selection(undoes=batch)
    return selection, _preview(state, selection), progress.run.course_title


def _badges_of_course(
    state: Community,
    course_id: str,
    kind: Kind | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
) -> tuple[undos.Selection, undos.Preview, str]:
    # Its mapping may be gone, and its badges are not.
    selections = [
        undos.Selection(
            wanted=issuances.Filter(kind=each, course_id=course_id),
            since=since,
            until=until,
        )
        for each in KINDS
        if kind in (None, each)
    ]
    found = [
        (each, preview)
        for each in selections
        if (preview := _preview(state, each)).standing
    ]

    if not found:
        when = " requested in this time" if since or until else ""
        raise click.ClickException(f"There are no badges of this course{when}.")

    if len(found) > 1:
        raise _two_kinds(course_id)

    ((selection, preview),) = found
    key = (selection.wanted.kind, course_id)
    titles = in_session(state.engine, accounts.titles, state.tenant, {key})
    return selection, preview, titles.get(key, course_id)


def _print_preview(found: undos.Preview, title: str) -> None:
    _say(f"{title}:")

    for name, number in (
        ("Queued, will be skipped", found["drop"]),
        ("Sending, will be revoked after issuance", found["waits"]),
        ("Not accepted, will be revoked", found["pending"]),
        ("Accepted, will be revoked", found["accepted"]),
        *(
            (f"Not changed: {LEFT_ALONE[each]}", number)
            for each, number in found.left_alone.items()
        ),
        ("Badges to skip or revoke", found.number),
    ):
        _say(f"{name:48}{number:,}")

    if found.recording:
        _say("The backfill is still running. It is stopped first.")


def _begin_undo(
    state: Community,
    selection: undos.Selection,
    found: undos.Preview,
    title: str,
    confirm: int,
    reason: str,
    tell: tuple[bool, bool],
) -> None:
    differs = click.ClickException(
        f"Nothing was done: there are {found.number:,} badges to skip or revoke now,"
        f" not {confirm:,}. Check the numbers and run the command again."
    )

    # What a backfill records until it is stopped belongs to it.
    if confirm > found.number or (confirm < found.number and not found.recording):
        raise differs

    earlier = in_session(state.engine, undone.latest, state.tenant)

    try:
        run_id = undos.start(
            state.engine,
            state.tenant,
            selection,
            number=confirm,
            reason=reason,
            tell_pending=tell[0],
            tell_accepted=tell[1],
            title=title,
            last_id=None if selection.undoes else found.last_id,
            by=audit.COMMAND_LINE,
        )
    except undos.Miscounted:
        raise differs from None

    if run_id is None:
        raise click.ClickException(
            "Nothing was done: the connection or the backfill was just removed."
        )

    page = state.page(f"/credly/undo/{run_id}")

    if earlier and run_id <= earlier[0].id:
        raise click.ClickException(
            f"Nothing was done: these badges are being revoked already. See {page}"
        )

    _say(f"A worker skips and revokes these badges. See {page}")
    _say_if_unheard(notifier.ask_for_undo(state))


@click.option(
    "--course", "course_id", help="Only the course or learning path with this id."
)
@_KIND
@click.option(
    "--since",
    callback=_time,
    metavar="TIME",
    help="Only completions since this time (UTC by default).",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
@_of_tenant
def backfill(
    course_id: str | None,
    kind: str | None,
    since: dt.datetime | None,
    dry_run: bool,
    tenant: str | None,
) -> None:
    """Issue badges for completions from before a course was mapped.

    You can repeat it safely. It also records completions that were never sent.
    """
    state = _community(tenant)
    mappings = [
        each
        for each in in_session(state.engine, accounts.list_mappings, state.tenant)
        if course_id in (None, each.course_id) and kind in (None, each.kind)
    ]

    if not mappings:
        raise click.ClickException("There is no mapping for this course.")

    if course_id is not None and len(mappings) > 1:
        raise _two_kinds(course_id)

    missed = unrecorded.gather_all(state)
    runs: list[int | None] = []

    for mapping in mappings:
        try:
            found = past.preview(state, accounts.course_of(mapping), since)
        except (RuntimeError, TypeError, ValueError, past.HookFailed) as e:
            raise click.ClickException(str(e)) from None

        _say(
            f"{mapping.course_title}: {found.completed:,} completed,"
            f" {found.there:,} issued, held or queued, {found.failed:,} failed or"
            f" skipped, {found.incomplete:,} without an e-mail address or name,"
            f" {found.to_issue:,} to issue."
        )

        if found.to_issue and not dry_run:
            by = audit.COMMAND_LINE
            runs.append(
                backfills.start(state.engine, state.tenant, mapping.id, since, by=by)
            )

    if dry_run:
        return

    past.run(state)
    begun = [each for each in runs if each is not None]
    # Another worker may have taken one up, and is at it still.
    found_after = [
        progress
        for each in begun
        if (
            progress := in_session(state.engine, backfills.progress, state.tenant, each)
        )
    ]

    for progress in found_after:
        _say(
            f"{progress.run.course_title}: {progress.to_issue:,} queued"
            f" (batch {progress.run.id})."
        )

    if any(progress.run.state == "failed" for progress in found_after):
        raise click.ClickException(
            "Some completions could not be recorded. The log has the cause. Run"
            " the command again for the rest."
        )

    everything = course_id is None and kind is None
    early = since is None or missed.since is None or since <= missed.since

    if (
        everything
        and early
        and backfills.are_recorded(state.engine, state.tenant, begun)
    ):
        counted.settle(state.engine, state.tenant, missed.number)


@_of_tenant
def dismiss(tenant: str | None) -> None:
    """Dismiss the warning about unrecorded completions."""
    # An empty name: of which community they are is not known.
    state = get_state().of("") if tenant == "" else _community(tenant)
    count = unrecorded.gather_all(state)
    counted.dismiss(state.engine, state.tenant, count.number, by=audit.COMMAND_LINE)
    click.echo(f"{count.number:,} dismissed.")


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_of_tenant
def doctor(as_json: bool, tenant: str | None) -> None:
    """Check the setup and show how to fix each problem."""
    from . import doctor as examination

    state = get_state()
    several: list[str] = []

    if tenant is None and state.has_tenants:
        try:
            several = turns.tenants(state.engine)
        except sa.exc.SQLAlchemyError as e:
            # What is wrong with the database is found below.
            logger.debug("Communities not known (%s).", type(e).__name__)

    if tenant is None and (len(several) > 1 or not several):
        found = examination.examine(
            state.of(DEFAULT_TENANT),
            of_account=False if state.has_tenants else None,
        )
        of_tenants = {
            each: examination.examine(state.of(each), of_account=True)
            for each in several
        }
    else:
        found = examination.examine(_community(tenant))
        of_tenants = {}

    every = list(found.values())
    every += [each for checks in of_tenants.values() for each in checks.values()]
    well = not any(each.status == "error" for each in every)

    if as_json:
        values: dict[str, t.Any] = {"ok": well, "checks": _checks(found)}

        if of_tenants:
            values["tenants"] = {
                name: {"checks": _checks(each)} for name, each in of_tenants.items()
            }

        _say(json.dumps(values))
    else:
        _print_checks(found)

        for name, each in of_tenants.items():
            _say(f"{name}:")
            _print_checks(each)

    sys.exit(0 if well else 1)


def _checks(found: dict[str, Finding]) -> dict[str, t.Any]:
    return {name: dataclasses.asdict(each) for name, each in found.items()}


def _print_checks(found: dict[str, Finding]) -> None:
    for name, each in found.items():
        _say(f"{each.status:8}{name:12}{each.detail}")

        if each.hint:
            _say(f"{'':20}→ {each.hint}")


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
    callback=_time,
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
@_of_tenant
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
    from .issuing import reconcile as reconciling

    if (bucket is None) != (confirm is None):
        raise click.UsageError("--repair and --confirm go together.")

    state = _community(tenant)

    try:
        with reconciling.compare(state, since, _count_up) as found:
            if bucket is None:
                _print_comparison(found, as_json, _again(since, tenant))
            else:
                _repair(state, found, bucket, confirm or 0, as_json)
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
        _say(json.dumps(values))
        sys.exit(1 if number and found.complete else 0 if found.complete else 2)

    for each in DIFFERENCES:
        if not counts[each]:
            continue

        words, remedy = _IN_WORDS[each]
        _say(f"{words}: {counts[each]:,}")
        _say(f"    {_first_few(found.comparison, each, counts[each])}")

        if each in REPAIRED:
            remedy = f"{command} --repair {each} --confirm {counts[each]}"

        _say(f"    → {remedy}")

    if counts["unknown_here"]:
        _say(
            "If this database comes from a backup, run first: flask credly restored\n"
            "Then no badge is issued that Credly has already."
        )

    if not number:
        where = "" if found.complete else " in what could be read"
        _say(f"No differences were found{where}.")

    _say(f"Badges that agree: {counts['agreed']:,}")
    _say(f"Badges at Credly that are not this site's: {counts['not_ours']:,}")

    if found.comparison.moving:
        _say(f"Changing just now, and not compared: {found.comparison.moving:,}")

    if not found.with_host:
        _say(
            "Your app was not asked who completed what: there is no"
            " @credly.past_completions hook."
        )

    if found.complete:
        sys.exit(1 if number else 0)

    for reason in found.unread:
        where = f" (page {reason.page + 1})" if reason.page else ""
        _say(f"Not read to the end{where}: {reason.detail}", err=True)

    _say("Nothing is said about what is missing there.", err=True)
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


def _repair(
    state: Community, found: Result, bucket: Bucket, confirm: int, as_json: bool
) -> None:
    from .issuing import reconcile as reconciling

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
        done = reconciling.repair(state, bucket, differences, by=audit.COMMAND_LINE)
    except reconciling.Unread as e:
        raise click.ClickException(
            f"Not all could be repaired. {e.detail} What was repaired stays so."
        ) from None

    if as_json:
        left = number - len(differences)
        _say(json.dumps({**dataclasses.asdict(done), "left": left}))
        return

    _say(f"{done.done:,} repaired.")

    if done.skipped:
        _say(f"{done.skipped:,} changed since the comparison and were left alone.")

    if done.no_course:
        _say(
            f"{done.no_course:,} were left: no course, or more than one, is mapped to"
            " their badge template."
        )

    if number > len(differences):
        _say(
            f"{number - len(differences):,} are left: at most {comparisons.AT_MOST} are"
            " repaired at once. Run it again."
        )


@click.option(
    "--copy", is_flag=True, help="The original is in use. Issue no badges here."
)
def restored(copy: bool) -> None:
    """Mark this database as restored from a backup.

    Run this before you start a worker. The ledger lacks badges issued after the
    backup, so each badge is looked up at Credly before it is issued.

    For a copy, such as a staging system, use --copy. It issues no badges until you
    run the command without --copy.
    """
    from .accounts import restoring

    state = get_state()
    restoring.note_restored(state.engine, copy=copy, by=audit.COMMAND_LINE)

    if copy:
        click.echo(
            "This database is marked as a copy. It issues no badges until you"
            " run: flask credly restored"
        )
        return

    click.echo("Each badge is now looked up at Credly before it is issued.")
    notifier.notify(state)


@click.option("--dry-run", is_flag=True, help="Report only.")
@_of_tenant
def rotate_keys(dry_run: bool, tenant: str | None) -> None:
    """Encrypt the stored secrets of all communities with the newest key."""
    state = get_state()

    if not keys.can_seal(state.app.config):
        raise click.ClickException(
            "No key is configured. Set CREDLY_ENCRYPTION_KEYS, newest first."
        )

    if tenant is not None:
        which = [_community(tenant).tenant]
    else:
        which = turns.tenants(state.engine) or [DEFAULT_TENANT]

    errors: list[click.ClickException] = []

    for each in which:
        if len(which) > 1:
            _say(f"{each}:")

        try:
            _rotate(state.of(each), dry_run=dry_run)
        except click.ClickException as e:
            if len(which) > 1:
                _say(e.message, err=True)

            errors.append(e)

    if errors:
        raise errors[0]


def _rotate(state: Community, *, dry_run: bool) -> None:
    from .accounts import rotating

    found = rotating.rotate_keys(state, dry_run=dry_run, by=audit.COMMAND_LINE)
    done = "to be encrypted" if dry_run or found.unreadable else "encrypted"
    _say(
        f"{len(found.rotated)} {done} with the newest key, {len(found.current)}"
        f" already current, {len(found.unreadable)} unreadable."
    )

    if found.unreadable:
        raise click.ClickException(
            "No configured key decrypts the"
            f" {' and the '.join(found.unreadable)}. Nothing was changed. Add the"
            " missing key to the end of CREDLY_ENCRYPTION_KEYS, or have an admin"
            " enter the Client Secret again."
        )


@click.option("--dry-run", is_flag=True, help="Count only.")
def prune(dry_run: bool) -> None:
    """Delete data older than the settings allow. A worker does this once a day."""
    from .ledger import retention as old

    state = get_state()

    if dry_run:
        _say("Dry run. Nothing was changed. This would be done:")

    done = old.prune(state.engine, state.settings, dry_run=dry_run)

    for each in done:
        _say(f"{each.what:48}{'kept' if each.rows is None else each.rows}")

    if rows := 0 if dry_run else sum(each.rows or 0 for each in done):
        # How many it was of all of them is no community's business.
        of_each = turns.tenants(state.engine) if state.has_tenants else []
        where = dict.fromkeys(of_each, "") or {DEFAULT_TENANT: str(rows)}

        for tenant, target in where.items():
            audit.note_alone(state.engine, tenant, audit.COMMAND_LINE, "prune", target)


@click.argument("member_id", metavar="ID")
@_of_tenant
def erase_member(member_id: str, tenant: str | None) -> None:
    """Erase the personal data of a member, named by your member id.

    Close the account first, so that no later completion is sent.
    """
    from .ledger import privacy

    state, member_id = _community(tenant), _read_id(member_id)
    by = audit.COMMAND_LINE
    erased = privacy.erase(state.engine, state.tenant, member_id, by=by)

    if not erased.badges:
        _say("There is no data about this member.")
        return

    _say(
        f"Badges without personal data now: {erased.badges}\n"
        f"Of these, queued and now skipped: {erased.cancelled}\n"
        f"Error log entries redacted: {erased.log_entries}"
    )

    if erased.perhaps_issued:
        _say(f"Of these, possibly issued by Credly: {erased.perhaps_issued}")

    if erased.sent_to_credly:
        _say(
            f"Of these, sent to Credly: {erased.sent_to_credly}\n"
            "Credly still has the e-mail address, names, completion time, badge"
            " template and a hash of the member's id. No badge was revoked. Ask"
            " Credly to erase this data."
        )

    for badge_id in erased.at_credly:
        _say(f"Badge at Credly: {badge_id}")


@click.argument("member_id", metavar="ID")
@_of_tenant
def export_member(member_id: str, tenant: str | None) -> None:
    """Print all data about a member as JSON, by your member id."""
    from .ledger import privacy

    state = _community(tenant)
    found = privacy.export(state.engine, state.tenant, _read_id(member_id))

    if found["badges"]:
        by = audit.COMMAND_LINE
        audit.note_alone(state.engine, state.tenant, by, "export member")

    _say(json.dumps(found, ensure_ascii=False, indent=2))


def _read_id(given: str, name: str = "ID") -> str:
    try:
        id_ = read_id(given, name)
        get_state().check_ids(**{name: id_})
        return id_
    except ValueError as e:
        raise click.UsageError(str(e)) from None
