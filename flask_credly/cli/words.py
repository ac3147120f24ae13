"""What commands say, and how they are told what."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import logging
import re
import typing as t

import click
import sqlalchemy as sa
from flask.cli import ScriptInfo

from .. import accounts
from ..admin.query import MAX_ID
from ..catalog import DEFAULT_TENANT
from ..catalog import KINDS
from ..catalog import read_id
from ..issuing.trouble import explain
from ..issuing.trouble import WrongQueue
from ..ledger import actions
from ..ledger import tables
from ..ledger import turns
from ..ledger.paging import Session
from ..ledger.transaction import in_session
from ..state import Community
from ..state import get_state

logger = logging.getLogger("flask_credly")

T = t.TypeVar("T")


@contextlib.contextmanager
def in_words(ctx: click.Context) -> cabc.Iterator[None]:
    """Say in words what goes wrong in a command."""
    try:
        yield
    except click.ClickException as e:
        if not isinstance(e, click.UsageError):  # that is the reader's own
            raise type(e)(printable(e.message)) from None

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


def say(text: str, *, err: bool = False) -> None:
    click.echo(printable(text), err=err)


# Control characters, what reorders a line, what ends one elsewhere than we do, and what
# no terminal's encoding has.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Write out what a terminal would take for a command of its own. Names of errors,
    workers and members come from elsewhere. What is JSON stays it.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextlib.contextmanager
def queue_in_use() -> cabc.Iterator[None]:
    """Say in words what is wrong with the queue."""
    from redis import RedisError

    try:
        yield
    except (RedisError, WrongQueue) as e:
        found = explain(e, get_state().settings)
        raise click.ClickException(f"{found} Badges stay queued.") from None


def of_tenant(command: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Let a command be told which community it is for."""
    return click.option("--tenant", help="Only this community.")(command)


def get_community(tenant: str | None) -> Community:
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


def check_connected(state: Community) -> None:
    if in_session(state.engine, accounts.get, state.tenant) is None:
        raise click.ClickException(
            "Credly is not connected. An admin can connect it at"
            f" {state.page('/credly')}."
        )


def say_if_unheard(notified: bool) -> None:
    if not notified:
        say(
            "Redis cannot be reached. A worker finds the queued badges at its next"
            " sweep."
        )


REASON = click.option(
    "--reason",
    metavar="TEXT",
    help="The reason. Credly stores it and the member may see it.",
)


_PROBLEMS: dict[actions.Problem, str] = {
    "short": "Give a reason of at least 3 characters: --reason TEXT.",
    "long": "Shorten the reason to 500 characters.",
    "address": "Remove the e-mail address from the reason. The member may see it.",
}


def check_reason(reason: str | None) -> str:
    if problem := actions.problem_with(reason or ""):
        raise click.UsageError(_PROBLEMS[problem])

    return reason or ""


def get_by_number(
    state: Community, question: t.Callable[[Session, str, int], T | None], number: int
) -> T | None:
    """Get what has a number, as typed: a database refuses one that no column holds."""
    if abs(number) > MAX_ID:
        return None

    return in_session(state.engine, question, state.tenant, number)


def as_time(
    ctx: click.Context, param: click.Parameter, given: str
) -> dt.datetime | None:
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


def two_kinds(course_id: str) -> click.UsageError:
    return click.UsageError(
        f"A course and a learning path share the id {course_id!r}. Add"
        f" {' or '.join(f'--kind {each}' for each in KINDS)}."
    )


KIND = click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Which one, if a course and a learning path share the id.",
)


def read_id_given(given: str, name: str = "ID") -> str:
    try:
        id_ = read_id(given, name)
        get_state().check_ids(**{name: id_})
        return id_
    except ValueError as e:
        raise click.UsageError(str(e)) from None
