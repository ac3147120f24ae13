"""``flask credly …``"""

from __future__ import annotations

import datetime as dt
import json
import typing as t

import click
from flask import current_app
from flask.cli import AppGroup

from . import connection
from .errors import CredlyError
from .issuing import backfill as past
from .issuing import bell
from .issuing import workers
from .ledger import audit
from .ledger import backfills
from .ledger import claim
from .ledger import gates
from .ledger import issuances
from .ledger import overview
from .settings import get_state


def make_group() -> AppGroup:
    """Make the command group for one application."""
    group = AppGroup("credly", help="Issue Credly badges.")
    group.command("worker")(worker)
    group.command("status")(status)
    group.command("sweep")(sweep)
    group.command("sync")(sync)
    group.command("retry")(retry)
    group.command("backfill")(backfill)
    return group


@click.option("--burst", is_flag=True, help="Stop when nothing is due.")
def worker(burst: bool) -> None:
    """Issue badges as they come in."""
    from redis import RedisError

    from .issuing.worker import work

    try:
        work(get_state(), burst=burst)
    except RedisError as e:
        raise click.ClickException(
            f"Redis cannot be reached ({type(e).__name__}). Is it running at the"
            " address of CREDLY_REDIS_URL?"
        ) from None


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """Show what waits and whether anything is in the way."""
    state = get_state()
    found = overview.read(state.session)
    until = found.paused_until
    values: dict[str, t.Any] = {
        "connection": found.connection,
        "paused_until": until.isoformat() if until else None,
        "pending": found.pending,
        "issued": found.issued,
        "failed": found.failed,
        "held": found.held,
        "oldest_pending_seconds": found.oldest_pending_seconds,
        "workers": workers.count(state),
    }

    if as_json:
        click.echo(json.dumps(values))
        return

    for name, value in values.items():
        click.echo(f"{name.replace('_', ' '):24}{'-' if value is None else value}")


def sweep() -> None:
    """Ring for a worker if a badge is due."""
    state = get_state()

    if not claim.any_due(state.engine, gates.read(state.engine)):
        click.echo("Nothing is due.")
        return

    if not bell.ring(state, insist=True):
        raise click.ClickException(
            "Badges are due, but Redis cannot be reached at the address of"
            " CREDLY_REDIS_URL. They wait."
        )

    click.echo("Badges are due. A worker was rung.")


def sync() -> None:
    """Load the active badge templates from Credly."""
    state = get_state()

    if connection.get(state.session) is None:
        raise click.ClickException(
            "Credly is not connected. An admin connects it at"
            f" {current_app.config.get('APPLICATION_ROOT', '/').rstrip('/')}"
            f"{state.settings.url_prefix}/."
        )

    try:
        count = connection.sync_templates(state, by=audit.COMMAND_LINE)
    except CredlyError as e:
        raise click.ClickException(
            f"The list could not be loaded. {e.detail}"
        ) from None

    click.echo(f"{count} active badge templates.")


@click.argument("ids", nargs=-1, type=int, metavar="[ID…]")
@click.option("--all", "everything", is_flag=True, help="All that failed.")
def retry(ids: tuple[int, ...], everything: bool) -> None:
    """Issue badges once more that failed, by their number in the ledger."""
    if everything == bool(ids):
        raise click.UsageError("Name the badges, or say --all.")

    state = get_state()
    wanted = [None] if everything else list(ids)
    tried = sum(
        issuances.retry(state.engine, each, by=audit.COMMAND_LINE) for each in wanted
    )
    click.echo(f"{tried} to be issued once more.")

    if tried and not bell.ring(state):
        click.echo("Redis cannot be reached. A worker's sweep finds them.")


@click.option("--course", "course_id", help="Only this course's or path's id.")
@click.option(
    "--since",
    type=click.DateTime(),
    help="Only completions from then on, in UTC.",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
def backfill(course_id: str | None, since: dt.datetime | None, dry_run: bool) -> None:
    """Issue badges to members who completed a mapped course before.

    A second time adds nothing, so that this also heals what was never signalled.
    """
    state = get_state()
    since = since.replace(tzinfo=dt.UTC) if since else None
    mappings = [
        each
        for each in connection.list_mappings(state.session)
        if course_id in (None, each.course_id)
    ]

    if not mappings:
        raise click.ClickException("No such course is mapped.")

    for mapping in mappings:
        try:
            found = past.preview(state, connection.course_of(mapping), since)
        except (RuntimeError, TypeError, ValueError) as e:
            raise click.ClickException(str(e)) from None

        click.echo(
            f"{mapping.course_title}: {found.completed:,} completed,"
            f" {found.there:,} have the badge, {found.failed:,} failed before,"
            f" {found.incomplete:,} lack an address or name,"
            f" {found.to_issue:,} to issue."
        )

        if found.to_issue and not dry_run:
            backfills.start(state.engine, mapping.id, since, by=audit.COMMAND_LINE)

    if not dry_run:
        past.run(state)
