"""What comes of a check, and what the checks of one examination share."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import shlex
import typing as t

from ..issuing import notifier
from ..issuing import workers
from ..ledger import overview
from ..ledger.transaction import in_session
from ..state import Community

if t.TYPE_CHECKING:
    import rq

Status = t.Literal["ok", "warning", "error", "skipped"]

_PATIENCE = 2.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of one check.

    :param status: "error": badges are not issued, or will not be. "skipped": it depends
        on something that is wrong or not there.
    :param hint: What to do. ``None``: nothing.
    """

    status: Status
    detail: str
    hint: str | None = None


def ok(detail: str) -> Finding:
    return Finding("ok", detail)


def skipped(detail: str) -> Finding:
    return Finding("skipped", detail)


def warning(detail: str, hint: str) -> Finding:
    return Finding("warning", detail, hint)


def error(detail: str, hint: str) -> Finding:
    return Finding("error", detail, hint)


@dataclasses.dataclass
class Shared:
    """What the cases of one examination know together.

    :param communities: All that are examined.
    :param alone: Whether no worker listens.
    :param credly_ahead: Seconds by which Credly's clock is ahead. ``None``: it was not
        asked.
    """

    communities: list[Community]
    alone: bool = False
    credly_ahead: float | None = None


class Case:
    """One community, and the application that it is in, as they are examined."""

    def __init__(self, state: Community, shared: Shared) -> None:
        self.state = state
        self.shared = shared
        self.config = state.app.config
        self.found: dict[str, Finding] = {}
        self.failed: set[str] = set()
        """The checks on which no other can be built."""

    def command(self, words: str) -> str:
        """Write a command as it is to be typed for this community."""
        tenant = shlex.quote(self.state.tenant)
        named = f" --tenant {tenant}" if self.state.has_tenants else ""
        return f"flask credly {words}{named}"

    @functools.cached_property
    def queue(self) -> rq.Queue:
        """The queue, at a Redis that is not waited for as long as by others."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        patient = redis.Redis.from_url(
            self.state.settings.redis_url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )
        return notifier.make_queue(self.state.app, self.state.settings, patient)

    @functools.cached_property
    def listening(self) -> dict[str, str | None]:
        """The workers that listen, each with whose badges it issues."""
        return workers.listening(self.queue)

    @functools.cached_property
    def seen(self) -> overview.Overview:
        return in_session(
            self.state.engine, overview.read, self.state.tenant, config=self.config
        )


def write_time(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")
