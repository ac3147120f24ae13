"""Commands for an administrator of the server: backups, keys and members' data."""

from __future__ import annotations

import json

import click

from .. import keys
from ..catalog import DEFAULT_TENANT
from ..issuing import notifier
from ..ledger import audit
from ..ledger import turns
from ..state import Community
from ..state import get_state
from .words import get_community
from .words import of_tenant
from .words import read_id_given
from .words import say


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
    from ..accounts import restoring

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
@of_tenant
def rotate_keys(dry_run: bool, tenant: str | None) -> None:
    """Encrypt the stored secrets of all communities with the newest key."""
    state = get_state()

    if not keys.can_seal(state.app.config):
        raise click.ClickException(
            "No key is configured. Set CREDLY_ENCRYPTION_KEYS, newest first."
        )

    if tenant is not None:
        which = [get_community(tenant).tenant]
    else:
        which = turns.tenants(state.engine) or [DEFAULT_TENANT]

    errors: list[click.ClickException] = []

    for each in which:
        if len(which) > 1:
            say(f"{each}:")

        try:
            _rotate(state.of(each), dry_run=dry_run)
        except click.ClickException as e:
            if len(which) > 1:
                say(e.message, err=True)

            errors.append(e)

    if errors:
        raise errors[0]


def _rotate(state: Community, *, dry_run: bool) -> None:
    from ..accounts import rotating

    found = rotating.rotate_keys(state, dry_run=dry_run, by=audit.COMMAND_LINE)
    done = "to be encrypted" if dry_run or found.unreadable else "encrypted"
    say(
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
    from ..ledger import retention as old

    state = get_state()

    if dry_run:
        say("Dry run. Nothing was changed. This would be done:")

    done = old.prune(state.engine, state.settings, dry_run=dry_run)

    for each in done:
        say(f"{each.what:48}{'kept' if each.rows is None else each.rows}")

    if rows := 0 if dry_run else sum(each.rows or 0 for each in done):
        # How many it was of all of them is no community's business.
        of_each = turns.tenants(state.engine) if state.has_tenants else []
        where = dict.fromkeys(of_each, "") or {DEFAULT_TENANT: str(rows)}

        for tenant, target in where.items():
            audit.note_alone(state.engine, tenant, audit.COMMAND_LINE, "prune", target)


@click.argument("member_id", metavar="ID")
@of_tenant
def erase_member(member_id: str, tenant: str | None) -> None:
    """Erase the personal data of a member, named by your member id.

    Close the account first, so that no later completion is sent.
    """
    from ..ledger import privacy

    state, member_id = get_community(tenant), read_id_given(member_id)
    by = audit.COMMAND_LINE
    erased = privacy.erase(state.engine, state.tenant, member_id, by=by)

    if not erased.badges and not erased.deleted:
        say("There is no data about this member.")
        return

    say(
        f"Badges without personal data now: {erased.badges}\n"
        f"Of these, queued and now skipped: {erased.cancelled}"
    )

    if erased.perhaps_issued:
        say(f"Of these, possibly issued by Credly: {erased.perhaps_issued}")

    if erased.sent_to_credly:
        say(f"Of these, sent to Credly: {erased.sent_to_credly}")

    say(f"Error log entries redacted: {erased.log_entries}")

    if erased.deleted:
        say(f"Withdrawals and differences deleted: {erased.deleted}")

    if erased.sent_to_credly:
        say(
            "Credly still has the e-mail address, names, completion time, badge"
            " template and a hash of the member's id. No badge was revoked. Ask"
            " Credly to erase this data."
        )

    for badge_id in erased.at_credly:
        say(f"Badge at Credly: {badge_id}")


@click.argument("member_id", metavar="ID")
@of_tenant
def export_member(member_id: str, tenant: str | None) -> None:
    """Print all data about a member as JSON, by your member id."""
    from ..ledger import privacy

    state = get_community(tenant)
    found = privacy.export(state.engine, state.tenant, read_id_given(member_id))

    if found["badges"]:
        by = audit.COMMAND_LINE
        audit.note_alone(state.engine, state.tenant, by, "export member")

    say(json.dumps(found, ensure_ascii=False, indent=2))
