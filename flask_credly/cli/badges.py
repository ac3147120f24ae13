"""Commands for single badges."""

from __future__ import annotations

import typing as t

import click

from ..catalog import Member
from ..issuing import notifier
from ..ledger import actions
from ..ledger import audit
from ..ledger import issuances
from ..ledger import retrying
from ..models import Issuance
from ..state import Community
from .words import check_reason
from .words import get_by_number
from .words import get_community
from .words import of_tenant
from .words import REASON
from .words import say
from .words import say_if_unheard


@click.argument("ids", nargs=-1, type=int, metavar="[ID…]")
@click.option("--all", "everything", is_flag=True, help="All failed badges.")
@of_tenant
def retry(ids: tuple[int, ...], everything: bool, tenant: str | None) -> None:
    """Queue failed badges again, by number."""
    if everything == bool(ids):
        raise click.UsageError("Name the badges or use --all.")

    state = get_community(tenant)

    _find(state, ids)
    by = audit.COMMAND_LINE

    if everything:
        tried, run_id = retrying.retry_all(state.engine, state.tenant, by=by)

        if run_id is not None:
            page = state.page("/credly/badges")
            say(f"A worker queues them again, many at a time. {page} shows how many.")
            say_if_unheard(notifier.ask_for_undo(state))
            return
    else:
        tried = sum(
            issuances.retry(state.engine, state.tenant, each, by=by) for each in ids
        )

    say(f"{tried} queued again.")

    if tried:
        say_if_unheard(notifier.notify(state))


def _told(command: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Let a command be told why badges are revoked, and whether members are told."""
    for option in (
        click.option("--silent", is_flag=True, help="Do not notify the member."),
        click.option("--tell", is_flag=True, help="Have Credly notify the member."),
        REASON,
    ):
        command = option(command)

    return command


def _read_reason(reason: str | None, tell: bool, silent: bool) -> str:
    if tell == silent:
        raise click.UsageError(
            "Choose --tell or --silent: whether Credly notifies the member."
        )

    return check_reason(reason)


def _find(state: Community, ids: tuple[int, ...]) -> list[Issuance]:
    """Get rows of the ledger.

    :raises click.ClickException: If there is none of one of these numbers.
    """
    rows = []

    for each in dict.fromkeys(ids):
        row = get_by_number(state, issuances.get, each)

        if row is None:
            raise click.ClickException(f"There is no badge {each}.")

        rows.append(row)

    return rows


def _end_actions(state: Community, done: int, left: list[str]) -> None:
    if done:
        say_if_unheard(notifier.notify(state))

    if left:
        raise click.ClickException("\n".join(left))


@click.argument("ids", nargs=-1, type=int, metavar="ID…", required=True)
@_told
@of_tenant
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
    state = get_community(tenant)
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
    say(f"{number('revoke')} queued for revocation, {number('drop')} skipped.")
    left = [
        f"Badge {each} cannot be revoked. Credly has no such badge, or another"
        " action on it is in progress."
        for each, what in done.items()
        if what is None
    ]
    _end_actions(state, len(done) - len(left), left)


@click.argument("ids", nargs=-1, type=int, metavar="ID…", required=True)
@_told
@of_tenant
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
    from ..issuing import profile

    why = None

    if reason is not None or tell or silent:
        why = _read_reason(reason, tell, silent)

    state = get_community(tenant)
    rows = _find(state, ids)

    if why is None and (still := [row.id for row in rows if actions.is_in_force(row)]):
        raise click.UsageError(
            f"Badge {still[0]} is valid and is revoked first. Add --reason TEXT"
            " and --tell or --silent."
        )

    left = []

    for row in rows:
        named = profile.named(profile.load(state, row) or row)

        # Its badge would be revoked, and no other issued.
        if missing := profile.missing(Member(row.member_id, **named)):
            left.append(f"Badge {row.id} cannot be reissued. {missing}")
            continue

        new_id = actions.issue_again(
            state.engine,
            state.tenant,
            row.id,
            **named,
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
            say(f"Badge {row.id} is reissued as badge {new_id}.")

    _end_actions(state, len(rows) - len(left), left)
