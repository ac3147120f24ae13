"""Whether the connection to Credly works, and what was read from there is fresh."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import orm

from .. import accounts
from .. import keys
from ..accounts import rotating
from ..errors import CredlyError
from ..errors import SecretUnreadable
from ..ledger import clock
from ..ledger import comparisons
from ..ledger import gates
from ..ledger import polls
from ..models import Account
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import skipped
from .finding import warning
from .finding import write_time

OLD_TEMPLATES = dt.timedelta(days=2)
"""A worker loads them once a day."""

OLD_COMPARISON = dt.timedelta(days=14)
"""After which the last comparison with Credly is old."""

OLD_SURVEY = polls.SURVEY_EVERY + dt.timedelta(days=1)
"""After which a full read is overdue by a day."""


def check_secret(case: Case) -> Finding:
    found = rotating.rotate_keys(case.state, dry_run=True)

    if case.seen.unreadable:
        return error(
            "The stored Client Secret cannot be decrypted with the configured"
            " keys. Badges stay queued.",
            f"{keys.remedy(case.config)} If the key is lost, enter the Client"
            f" Secret again at {case.state.page('/credly/connection')}.",
        )

    if case.seen.keyless_worker:
        return error(
            "A worker cannot decrypt the stored Client Secret, so it issues"
            " no badges. This process can.",
            "Restart that worker with the CREDLY_ENCRYPTION_KEYS and"
            " SECRET_KEY of this process. Its log shows the error.",
        )

    if found.unreadable:
        return warning(
            "A process with other keys encrypted the access token.",
            "Set the same CREDLY_ENCRYPTION_KEYS in all processes.",
        )

    if found.rotated:
        return warning(
            f"Encrypted with an older key: {', '.join(found.rotated)}.",
            f"Run {case.command('rotate-keys')}",
        )

    return ok(
        "Encrypted with the newest key." if found.current else "No secret is stored."
    )


def check_connection(case: Case) -> Finding:
    seen = case.seen

    if seen.connection == "none":
        return warning(
            "Credly is not connected.",
            f"An admin can connect it at {case.state.page('/credly')}.",
        )

    if seen.connection == "removing":
        return warning(
            "Credly was removed. What is left of it is still being deleted.",
            "Nothing. An admin can connect it again afterwards.",
        )

    if seen.connection == "expired":
        return error(
            "Connection expired. Badges stay queued.",
            f"Reconnect at {case.state.page('/credly/connection')}.",
        )

    if seen.is_copy:
        return warning(
            "This database is marked as a copy. No badges are issued.",
            "If it is the live database, run flask credly restored",
        )

    if seen.switched_off:
        return warning(
            "An admin paused issuing. Badges stay queued.",
            f"Resume issuing at {case.state.page('/credly')}.",
        )

    if seen.paused_until is not None:
        return warning(
            f"Paused until {write_time(seen.paused_until)} ({seen.pause_reason}).",
            "Nothing. Issuing resumes automatically.",
        )

    gate = gates.read(case.state.engine, case.state.tenant)
    said = ["Connected."]

    if gate is not None and gate.restored:
        said.append(
            "The database was restored, so each badge is looked up before it is issued."
        )

    if gate is not None and not gate.batches:
        said.append(
            "Credly did not accept several badges in one request, so badges are"
            " sent one at a time. Several are sent again after a day, or when you"
            " reconnect."
        )

    return ok(" ".join(said))


def check_token(case: Case) -> Finding:
    gate = gates.read(case.state.engine, case.state.tenant)

    if gate is None:
        return skipped("Not checked: see connection.")

    if case.seen.paused_until is not None:
        return skipped("Not checked: issuing is paused.")

    try:
        answered_at = accounts.verify(case.state, gate)
    except accounts.NotVerified as e:
        return error(
            f"Credly rejected the credentials. {e.detail}",
            f"Enter them again at {case.state.page('/credly/connection')}.",
        )
    except SecretUnreadable:
        return skipped("Not checked: see secret.")
    except CredlyError as e:
        return error(
            f"Credly could not be reached. {e.detail}",
            "If this persists, check that this machine can reach"
            f" {case.state.settings.token_url} and"
            f" {case.state.settings.api_url}.",
        )

    if answered_at is not None:
        now = dt.datetime.now(dt.UTC)
        case.shared.credly_ahead = (answered_at - now).total_seconds()

    return ok("Credly accepts the token.")


def check_templates(case: Case) -> Finding:
    tenant = case.state.tenant

    with orm.Session(case.state.engine) as session:
        row = accounts.get(session, tenant)
        number = accounts.count_templates(session, tenant)
        gone = accounts.mapped_and_gone(session, tenant)
        single = accounts.mapped_and_single(session, tenant)

    if row is None:
        return skipped("Not checked: see connection.")

    if gone:
        return error(
            "Mapped, but no longer active in Credly:"
            f" {_list([(name, course) for name, course, _ in gone])}.",
            f"Activate them in Credly and run {case.command('sync')}, or change the"
            f" mappings at {case.state.page('/credly')}.",
        )

    if single:
        return error(
            "Mapped to issue another badge every time, but the template does not"
            f" allow duplicates: {_list(single)}. Further badges stay queued.",
            "Allow duplicates for the template in Credly and run"
            f" {case.command('sync')}, or choose Renew in the options of the mapping at"
            f" {case.state.page('/credly')}.",
        )

    return _age(case, row, number)


def _age(case: Case, row: Account, number: int) -> Finding:
    at = row.templates_synced_at

    if at is None:
        return warning(
            "The badge templates were never fully loaded.",
            f"Run {case.command('sync')}",
        )

    text = f"{number} active, loaded at {write_time(at)}"
    old = dt.datetime.now(dt.UTC) - at > OLD_TEMPLATES

    if row.templates_failed_at is not None or old:
        return warning(f"{text}. Later attempts failed.", f"Run {case.command('sync')}")

    return ok(f"{text}.")


def check_poll(case: Case) -> Finding:
    tenant = case.state.tenant

    with orm.Session(case.state.engine) as session:
        row = accounts.get(session, tenant)
        first = polls.first_issued(session.connection(), tenant)
        now = clock.now(session.connection())

    if row is None:
        return skipped("Not checked: see connection.")

    if first is None:
        return ok("No badge was issued yet.")

    at = row.surveyed_at
    text = (
        "The badges were never fully read from Credly."
        if at is None
        else f"All badges were last read from Credly at {write_time(at)}."
    )

    # Nothing is read while that is not possible, which is said above.
    if case.seen.connection == "connected" and (
        now - (at or max(first, row.connected_at)) > OLD_SURVEY
    ):
        return warning(
            f"{text} This is overdue: a worker does it once a day.",
            "Run flask credly worker. If one is running, its log has the cause"
            " (credly_event poll_failed).",
        )

    if row.poll_unsorted:
        return warning(
            f"{text} Credly does not list the latest changes first, so changes"
            " are found only when all badges are read, once a day.",
            f"Nothing. To read all badges now, run {case.command('poll')}",
        )

    return ok(
        "All badges will be read from Credly a day after the first was issued."
        if at is None
        else text
    )


def check_comparison(case: Case) -> Finding:
    tenant = case.state.tenant

    with orm.Session(case.state.engine) as session:
        row = accounts.get(session, tenant)
        known = comparisons.known(session, tenant)
        now = clock.now(session.connection())

    if row is None:
        return skipped("Not checked: see connection.")

    if known.failed and known.latest is not None:
        why = [
            comparisons.WORDS[each]
            for each, _ in (known.latest.found or {}).get("unread", ())
        ]
        return warning(
            " ".join(
                [
                    "The last comparison with Credly, at"
                    f" {write_time(known.latest.started_at)}, failed.",
                    *why,
                ]
            ),
            f"Run {case.command('reconcile')} to see what is wrong. The log has the"
            " cause (credly_event reconcile_failed).",
        )

    at = None if known.shown is None else known.shown.started_at
    text = (
        "Badges were never compared with Credly."
        if at is None or known.found is None
        else f"Badges were last compared with Credly at {write_time(at)}. Differences:"
        f" {known.found.number}."
    )
    late = row.compare_due_at is not None and (
        row.compare_due_at <= now - comparisons.EVERY
    )

    if case.seen.connection == "connected" and (
        late or (at is not None and at <= now - OLD_COMPARISON)
    ):
        return warning(
            f"{text} This is overdue: a worker compares once a week.",
            "Run flask credly worker. If one is running, its log has the cause"
            " (credly_event reconcile_failed).",
        )

    return ok(text)


def _list(badges: list[tuple[str, str]]) -> str:
    """Name the first few of some badge templates, each with its course."""
    named = ", ".join(f"{name} for {course}" for name, course in badges[:5])
    return f"{named} and {len(badges) - 5} more" if len(badges) > 5 else named
