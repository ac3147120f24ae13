"""``flask credly …``"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import re
import sys
import typing as t

import click
import sqlalchemy as sa
from flask import current_app
from flask.cli import AppGroup
from flask.cli import ScriptInfo
from flask.logging import default_handler
from flask.logging import has_level_handler

from . import accounts
from . import keys
from .catalog import DEFAULT_TENANT
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
from .ledger import issuances
from .ledger import overview
from .ledger import tables
from .ledger import turns
from .ledger import unrecorded as counted
from .ledger.transaction import in_session
from .models import Issuance
from .state import Community
from .state import get_state

if t.TYPE_CHECKING:
    from .doctor import Finding

logger = logging.getLogger("flask_credly")


class _Group(AppGroup):
    def invoke(self, ctx: click.Context) -> t.Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as e:
            if type(e) is click.ClickException:  # its usage is the reader's own
                raise click.ClickException(_printable(e.message)) from None

            raise
        except (sa.exc.OperationalError, sa.exc.ProgrammingError) as e:
            # Its text may hold an address with a password.
            logger.debug("The command failed.", exc_info=True)

            with ctx.ensure_object(ScriptInfo).load_app().app_context():
                if tables.explain(get_state().engine, e):
                    raise click.ClickException(tables.MISSING) from None

            raise click.ClickException(
                f"The database cannot be asked ({type(e.orig or e).__name__})."
                " flask credly doctor says what is wrong."
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
        raise click.ClickException(f"{found} What is due waits.") from None


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
                "This app has one community. Leave --tenant out, or register a"
                " function with '@credly.tenant'."
            )

        return state.of(DEFAULT_TENANT)

    # Those that were removed too: what is done to a member's badges is not to be done
    # to those of another member.
    known = turns.known(state.engine)

    if tenant is not None:
        if tenant not in known:
            raise click.UsageError(f"Nothing is stored of a community {tenant!r}.")

        return state.of(tenant)

    if len(known) != 1:
        raise click.UsageError(
            "Say which community: --tenant"
            f" {'ID' if len(known) > 20 or not known else '|'.join(known)}."
        )

    return state.of(known[0])


def make_group() -> AppGroup:
    """Make the command group for one application."""
    group = _Group("credly", help="Issue Credly badges.")
    group.command("worker")(worker)
    group.command("status")(status)
    group.command("sweep")(sweep)
    group.command("sync")(sync)
    group.command("poll")(poll)
    group.command("retry")(retry)
    group.command("revoke")(revoke)
    group.command("reissue")(reissue)
    group.command("backfill")(backfill)
    group.command("dismiss")(dismiss)
    group.command("doctor")(doctor)
    group.command("restored")(restored)
    group.command("rotate-keys")(rotate_keys)
    group.command("prune")(prune)
    group.command("erase-member")(erase_member)
    group.command("export-member")(export_member)
    return group


@click.option("--burst", is_flag=True, help="Stop when nothing is due.")
def worker(burst: bool) -> None:
    """Issue badges as they come in."""
    from .issuing.worker import work

    # What is said at INFO is for whoever looks on, unless the host logs in its own way.
    if not has_level_handler(logger):
        logger.addHandler(default_handler)
        logger.setLevel(logging.INFO)

    if not burst:
        _say("Issuing badges as they come in. Ctrl-C stops it.", err=True)

    with _queue_in_use():
        work(get_state(), burst=burst)


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--all", "everything", is_flag=True, help="All communities.")
@_of_tenant
def status(as_json: bool, everything: bool, tenant: str | None) -> None:
    """Show what waits and whether anything is in the way."""
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


def _print_status(values: dict[str, t.Any]) -> None:
    for name, value in values.items():
        _say(f"{name.replace('_', ' '):24}{'-' if value is None else value}")


def sweep() -> None:
    """Ask for what is due, as a worker of ours does by itself."""
    from .issuing.sweep import sweep as look

    state = get_state()

    with _queue_in_use():
        due = look(state, notifier.web_queue(state), insist=True)

    _say("Badges are due. A worker was rung." if due else "No badge is due.")


@_of_tenant
def sync(tenant: str | None) -> None:
    """Load the active badge templates from Credly."""
    state = _community(tenant)

    if in_session(state.engine, accounts.get, state.tenant) is None:
        raise click.ClickException(
            "Credly is not connected. An admin connects it at"
            f" {current_app.config.get('APPLICATION_ROOT', '/').rstrip('/')}"
            f"{state.settings.url_prefix}/."
        )

    try:
        count = accounts.sync_templates(state, by=audit.COMMAND_LINE)
    except CredlyError as e:
        raise click.ClickException(
            f"The list could not be loaded. {e.detail}"
        ) from None

    _say(f"{count} active badge templates.")


@_of_tenant
def poll(tenant: str | None) -> None:
    """Ask Credly what became of the badges: accepted, declined, revoked.

    A worker does so by itself.
    """
    from .issuing.poll import poll_now

    state = _community(tenant)

    if in_session(state.engine, accounts.get, state.tenant) is None:
        raise click.ClickException("Credly is not connected.")

    if not poll_now(state):
        raise click.ClickException(
            "Credly was not asked to the end: the connection is paused or has expired,"
            " a worker is at it, or Credly did not answer. The log says more."
        )

    found = in_session(state.engine, overview.read, state.tenant)
    _say(
        f"{found.issued:,} issued, {found.accepted:,} accepted,"
        f" {found.unaccepted:,} not accepted yet, {found.revoked:,} revoked."
    )


@click.argument("ids", nargs=-1, type=int, metavar="[ID…]")
@click.option("--all", "everything", is_flag=True, help="All that failed.")
@_of_tenant
def retry(ids: tuple[int, ...], everything: bool, tenant: str | None) -> None:
    """Issue badges once more that failed, by their number in the ledger."""
    if everything == bool(ids):
        raise click.UsageError("Name the badges, or say --all.")

    state = _community(tenant)

    for each in ids:
        if in_session(state.engine, issuances.get, state.tenant, each) is None:
            raise click.ClickException(f"No badge has the number {each}.")

    wanted = [None] if everything else list(ids)
    by = audit.COMMAND_LINE
    tried = sum(
        issuances.retry(state.engine, state.tenant, each, by=by) for each in wanted
    )
    _say(f"{tried} to be issued once more.")

    if tried and not notifier.notify(state):
        _say("Redis cannot be reached. A worker's sweep finds them.")


def _told(command: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Let a command be told why badges are revoked, and whether members are told."""
    for option in (
        click.option("--silent", is_flag=True, help="Do not tell the member."),
        click.option("--tell", is_flag=True, help="Credly writes to the member."),
        click.option(
            "--reason",
            metavar="TEXT",
            help="Why it is revoked. Credly keeps it, and the member may read it.",
        ),
    ):
        command = option(command)

    return command


_PROBLEMS: dict[actions.Problem, str] = {
    "short": "Say in a few words why: --reason TEXT, of at least 3 characters.",
    "long": "The reason is too long: it has at most 500 characters.",
    "address": "Leave e-mail addresses out of the reason: the member may read it.",
}


def _read_reason(reason: str | None, tell: bool, silent: bool) -> str:
    if tell == silent:
        raise click.UsageError("Say whether the member is told: --tell or --silent.")

    if problem := actions.problem_with(reason or ""):
        raise click.UsageError(_PROBLEMS[problem])

    return reason or ""


def _find(state: Community, ids: tuple[int, ...]) -> list[Issuance]:
    """Get rows of the ledger.

    :raises click.ClickException: If there is none of one of these numbers.
    """
    rows = []

    for each in dict.fromkeys(ids):
        if (row := in_session(state.engine, issuances.get, state.tenant, each)) is None:
            raise click.ClickException(f"No badge has the number {each}.")

        rows.append(row)

    return rows


def _end_actions(state: Community, done: int, left: list[str]) -> None:
    if done and not notifier.notify(state):
        _say("Redis cannot be reached. A worker's sweep finds them.")

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
    """Revoke badges at Credly, by their number in the ledger.

    One that was not sent yet is taken back. A worker does the rest.
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
    _say(f"{number('revoke')} to be revoked, {number('drop')} taken back.")
    left = [
        f"Badge {each} cannot be revoked: there is none at Credly, or something is"
        " being done about it."
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
    """Issue badges again, to the address and names that the member has now.

    One that is in force is revoked first: say why, and whether the member is told.
    """
    from .issuing import profile

    why = None

    if reason is not None or tell or silent:
        why = _read_reason(reason, tell, silent)

    state = _community(tenant)
    rows = _find(state, ids)

    if why is None and (still := [row.id for row in rows if actions.is_in_force(row)]):
        raise click.UsageError(
            f"Badge {still[0]} is in force, and is revoked first: say why with"
            " --reason TEXT, and --tell or --silent."
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
                f"Badge {row.id} cannot be issued again: it was not issued, there is a"
                " later one, something is being done about it, or its course is not"
                " mapped any more."
            )
        else:
            _say(f"Badge {row.id} is issued again as badge {new_id}.")

    _end_actions(state, len(rows) - len(left), left)


def _time(ctx: click.Context, param: click.Parameter, given: str) -> dt.datetime | None:
    try:
        at = dt.datetime.fromisoformat(given) if given else None
    except ValueError:
        raise click.BadParameter(
            "Write a time such as 2025-01-31 or 2025-01-31T12:00:00Z."
        ) from None

    return at.replace(tzinfo=dt.UTC) if at and at.tzinfo is None else at


@click.option("--course", "course_id", help="Only this course's or path's id.")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Which of the two has that id, where both do.",
)
@click.option(
    "--since",
    callback=_time,
    metavar="TIME",
    help="Only completions from then on; in UTC, unless it says otherwise.",
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
    """Issue badges to members who completed a mapped course before.

    A second time adds nothing, so that this also heals what was never signalled.
    """
    state = _community(tenant)
    mappings = [
        each
        for each in in_session(state.engine, accounts.list_mappings, state.tenant)
        if course_id in (None, each.course_id) and kind in (None, each.kind)
    ]

    if not mappings:
        raise click.ClickException("No such course is mapped.")

    if course_id is not None and len(mappings) > 1:
        raise click.UsageError(
            f"A course and a learning path have the id {course_id!r}. Say which:"
            f" {' or '.join(f'--kind {each}' for each in KINDS)}."
        )

    missed = unrecorded.gather_all(state)
    runs: list[int | None] = []

    for mapping in mappings:
        try:
            found = past.preview(state, accounts.course_of(mapping), since)
        except (RuntimeError, TypeError, ValueError, past.HookFailed) as e:
            raise click.ClickException(str(e)) from None

        _say(
            f"{mapping.course_title}: {found.completed:,} completed,"
            f" {found.there:,} have the badge, {found.failed:,} failed before,"
            f" {found.incomplete:,} lack an address or name,"
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
        _say(f"{progress.run.course_title}: {progress.to_issue:,} recorded.")

    if any(progress.run.state == "failed" for progress in found_after):
        raise click.ClickException(
            "Not all could be recorded; the log says why. The next run finds the rest."
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
    """Say that completions that could not be recorded have been dealt with."""
    # An empty name: of which community they are is not known.
    state = get_state().of("") if tenant == "" else _community(tenant)
    count = unrecorded.gather_all(state)
    counted.dismiss(state.engine, state.tenant, count.number, by=audit.COMMAND_LINE)
    click.echo(f"{count.number:,} dismissed.")


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_of_tenant
def doctor(as_json: bool, tenant: str | None) -> None:
    """Check everything, and say what mends what is wrong."""
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


@click.option(
    "--copy", is_flag=True, help="The original is in use: issue nothing here."
)
def restored(copy: bool) -> None:
    """Say that this database comes from a backup.

    Run it before a worker starts. What was issued after the backup is not in the
    ledger: from now on each badge is looked up at Credly before it is issued.

    For a copy, such as a staging system, say --copy: it issues nothing until the
    command is run without it.
    """
    from .accounts import restoring

    state = get_state()
    restoring.note_restored(state.engine, copy=copy, by=audit.COMMAND_LINE)

    if copy:
        click.echo(
            "This database is a copy. No badge is issued from it until you run:"
            " flask credly restored"
        )
        return

    click.echo("Each badge is looked up at Credly before it is issued.")
    notifier.notify(state)


@click.option("--dry-run", is_flag=True, help="Look only.")
@_of_tenant
def rotate_keys(dry_run: bool, tenant: str | None) -> None:
    """Encrypt the stored secrets with the newest key, of all communities."""
    state = get_state()

    if not keys.can_seal(state.app.config):
        raise click.ClickException(
            "There is no key. Set CREDLY_ENCRYPTION_KEYS, newest first."
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
        f"{len(found.rotated)} {done} with"
        f" the newest key, {len(found.current)} there already,"
        f" {len(found.unreadable)} unreadable."
    )

    if found.unreadable:
        raise click.ClickException(
            f"No configured key decrypts the {' and the '.join(found.unreadable)}, so"
            " nothing was changed. Put the key that is missing at the end of"
            " CREDLY_ENCRYPTION_KEYS, or let an admin enter the Client Secret again."
        )


@click.option("--dry-run", is_flag=True, help="Count only.")
def prune(dry_run: bool) -> None:
    """Forget what is older than the settings say. The worker does so once a day."""
    from .ledger import retention as old

    state = get_state()

    if dry_run:
        _say("Nothing is changed. It would be:")

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
    """Make all that is stored about a member name nobody, by your id of the member.

    Close the account first, so that no completion is signalled after it.
    """
    from .ledger import privacy

    state, member_id = _community(tenant), _member_id(member_id)
    by = audit.COMMAND_LINE
    erased = privacy.erase(state.engine, state.tenant, member_id, by=by)

    if not erased.badges:
        _say("Nothing is stored about this member.")
        return

    _say(
        f"Badges that name nobody any more: {erased.badges}\n"
        f"Among them waiting, and not sent any more: {erased.cancelled}\n"
        f"Entries of the error log redacted: {erased.log_entries}"
    )

    if erased.perhaps_issued:
        _say(
            "Among them not known to be issued, though Credly may have done so:"
            f" {erased.perhaps_issued}"
        )

    if erased.sent_to_credly:
        _say(
            f"Among them Credly was sent: {erased.sent_to_credly}\n"
            "It is still there, and no badge was revoked: the e-mail address, the"
            " names, the time of completion, the badge template and a hash of the"
            " member's id. Ask Credly to erase it."
        )

    for badge_id in erased.at_credly:
        _say(f"Badge at Credly: {badge_id}")


@click.argument("member_id", metavar="ID")
@_of_tenant
def export_member(member_id: str, tenant: str | None) -> None:
    """Print all that is stored about a member as JSON, by your id of the member."""
    from .ledger import privacy

    state = _community(tenant)
    found = privacy.export(state.engine, state.tenant, _member_id(member_id))

    if found["badges"]:
        by = audit.COMMAND_LINE
        audit.note_alone(state.engine, state.tenant, by, "export member")

    _say(json.dumps(found, ensure_ascii=False, indent=2))


def _member_id(given: str) -> str:
    try:
        id_ = read_id(given, "ID")
        get_state().check_ids(ID=id_)
        return id_
    except ValueError as e:
        raise click.UsageError(str(e)) from None
