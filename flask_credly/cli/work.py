"""Commands of the worker and of what it does from time to time."""

from __future__ import annotations

import json
import logging
import typing as t

import click
from flask.logging import default_handler
from flask.logging import has_level_handler

from .. import accounts
from ..catalog import DEFAULT_TENANT
from ..errors import CredlyError
from ..issuing import notifier
from ..issuing import unrecorded
from ..issuing import workers
from ..ledger import audit
from ..ledger import overview
from ..ledger import turns
from ..ledger.transaction import in_session
from ..state import Community
from ..state import get_state
from .words import check_connected
from .words import get_community
from .words import of_tenant
from .words import queue_in_use
from .words import say

logger = logging.getLogger("flask_credly")


@click.option("--burst", is_flag=True, help="Stop when no badge is due.")
def worker(burst: bool) -> None:
    """Run a worker that issues queued badges."""
    from ..issuing.worker import work

    # What is said at INFO is for whoever looks on, unless the host logs in its own way.
    if not has_level_handler(logger):
        logger.addHandler(default_handler)
        logger.setLevel(logging.INFO)

    if not burst:
        say("Issuing queued badges. Press Ctrl-C to stop.", err=True)

    with queue_in_use():
        work(get_state(), burst=burst)


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--all", "everything", is_flag=True, help="All communities.")
@of_tenant
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
            say(json.dumps({"tenants": found}))
            return

        for name, values in found.items():
            say(f"{name or '(not known)'}:")
            _print_status(values)

        return

    values = _status(get_community(known[0] if tenant is None else tenant))

    if as_json:
        say(json.dumps(values))
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
        say(f"{name:24}{'-' if value is None else value}")


def sweep() -> None:
    """Notify a worker of due badges. A worker also does this itself."""
    from ..issuing.sweep import sweep as look

    state = get_state()

    with queue_in_use():
        due = look(state, notifier.web_queue(state), insist=True)

    say("Badges are due. A worker was notified." if due else "No badge is due.")


@of_tenant
def sync(tenant: str | None) -> None:
    """Load the active badge templates from Credly."""
    state = get_community(tenant)

    check_connected(state)

    try:
        count = accounts.sync_templates(state, by=audit.COMMAND_LINE)
    except CredlyError as e:
        raise click.ClickException(
            f"The badge templates could not be loaded. {e.detail}"
        ) from None

    say(f"Active badge templates: {count}.")


@of_tenant
def poll(tenant: str | None) -> None:
    """Read from Credly which badges were accepted, declined or revoked.

    A worker does this automatically.
    """
    from ..issuing.poll import poll_now

    state = get_community(tenant)

    check_connected(state)

    if not poll_now(state):
        raise click.ClickException(
            "Not all badges could be checked. The connection is paused or"
            " expired, a worker is already checking, or Credly did not respond."
            " The log has the details."
        )

    found = in_session(state.engine, overview.read, state.tenant)
    say(
        f"{found.issued:,} issued, {found.accepted:,} accepted,"
        f" {found.unaccepted:,} not yet accepted, {found.revoked:,} revoked."
    )
