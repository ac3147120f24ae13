"""Commands for many badges, and for completions before the integration."""

from __future__ import annotations

import datetime as dt

import click

from .. import accounts
from ..admin.undo import LEFT_ALONE
from ..catalog import Kind
from ..catalog import KINDS
from ..issuing import backfill as past
from ..issuing import notifier
from ..issuing import unrecorded
from ..ledger import audit
from ..ledger import backfills
from ..ledger import issuances
from ..ledger import undone
from ..ledger import undos
from ..ledger import unrecorded as counted
from ..ledger.transaction import in_session
from ..state import Community
from ..state import get_state
from .words import as_time
from .words import check_connected
from .words import check_reason
from .words import get_by_number
from .words import get_community
from .words import KIND
from .words import of_tenant
from .words import read_id_given
from .words import REASON
from .words import say
from .words import say_if_unheard
from .words import two_kinds

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
@KIND
@click.option(
    "--since",
    callback=as_time,
    metavar="TIME",
    help="With --course: only badges requested since this time (UTC by default).",
)
@click.option(
    "--until",
    callback=as_time,
    metavar="TIME",
    help="With --course: only badges requested before this time (UTC by default).",
)
@click.option(
    "--confirm",
    type=int,
    metavar="N",
    help="Revoke them. N is the number of badges shown without this option.",
)
@REASON
@click.option(
    "--tell",
    "whom",
    type=click.Choice([*_WHOM]),
    help="Which members Credly notifies: by whether they have accepted the badge.",
)
@of_tenant
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
        reason = check_reason(reason)

        if whom is None:
            raise click.UsageError(
                f"Say whom Credly notifies: --tell {'|'.join(_WHOM)}."
            )

    state = get_community(tenant)
    check_connected(state)

    if batch is not None:
        selection, found, title = _badges_of_batch(state, batch)
    else:
        selection, found, title = _badges_of_course(
            state, read_id_given(course_id or "", "--course"), kind, since, until
        )

    _print_preview(found, title)

    if not found.number and not confirm:
        say("There are no badges to revoke.")
        return

    if confirm is None or whom is None:
        say(
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
    progress = get_by_number(state, backfills.progress, batch)

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
        raise two_kinds(course_id)

    ((selection, preview),) = found
    key = (selection.wanted.kind, course_id)
    titles = in_session(state.engine, accounts.titles, state.tenant, {key})
    return selection, preview, titles.get(key, course_id)


def _print_preview(found: undos.Preview, title: str) -> None:
    say(f"{title}:")

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
        say(f"{name:48}{number:,}")

    if found.recording:
        say("The backfill is still running. It is stopped first.")


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

    say(f"A worker skips and revokes these badges. See {page}")
    say_if_unheard(notifier.ask_for_undo(state))


@click.option(
    "--course", "course_id", help="Only the course or learning path with this id."
)
@KIND
@click.option(
    "--since",
    callback=as_time,
    metavar="TIME",
    help="Only completions since this time (UTC by default).",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
@of_tenant
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
    state = get_community(tenant)
    mappings = [
        each
        for each in in_session(state.engine, accounts.list_mappings, state.tenant)
        if course_id in (None, each.course_id) and kind in (None, each.kind)
    ]

    if not mappings:
        raise click.ClickException("There is no mapping for this course.")

    if course_id is not None and len(mappings) > 1:
        raise two_kinds(course_id)

    missed = unrecorded.gather_all(state)
    runs: list[int | None] = []

    for mapping in mappings:
        try:
            found = past.preview(state, accounts.course_of(mapping), since)
        except (RuntimeError, TypeError, ValueError, past.HookFailed) as e:
            raise click.ClickException(str(e)) from None

        say(
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
        say(
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


@of_tenant
def dismiss(tenant: str | None) -> None:
    """Dismiss the warning about unrecorded completions."""
    # An empty name: of which community they are is not known.
    state = get_state().of("") if tenant == "" else get_community(tenant)
    count = unrecorded.gather_all(state)
    counted.dismiss(state.engine, state.tenant, count.number, by=audit.COMMAND_LINE)
    click.echo(f"{count.number:,} dismissed.")
