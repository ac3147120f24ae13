"""A world in which anything may happen in any order."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import os
import typing as t

import hypothesis
import pytest
import responses
import sqlalchemy as sa
from conftest import a_member
from conftest import Host
from conftest import MakeHost
from hypothesis import stateful

from flask_credly.issuing import stopping
from flask_credly.issuing import token as token_module
from flask_credly.ledger import clock
from flask_credly.models import Base
from flask_credly.testing import CredlySimulator
from flask_credly.testing import serving

EXAMPLES = int(os.environ.get("CREDLY_TEST_EXAMPLES", "25"))

KEYS = [char * 43 + "=" for char in "AEIMQU"]


PAST = [(a_member(id_), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) for id_ in "123"]
"""What the host knows of the time before, of each course."""


class Died(BaseException):
    """A worker's end, which no code of ours may catch."""


class World:
    """What stays between the examples: an application and the network."""

    def __init__(self, host: Host, patch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.offset = dt.timedelta()
        self.credly = CredlySimulator()
        self.past: cabc.Callable[[t.Any], cabc.Iterable[t.Any]] = lambda course: PAST
        patch.setattr(clock, "now", lambda _: dt.datetime.now(dt.UTC) + self.offset)
        patch.setattr(token_module.time, "sleep", self.advance)
        # A drain waits for the end of a short pause.
        patch.setattr(stopping, "wait", self.wait)

    def advance(self, seconds: float) -> None:
        self.offset += dt.timedelta(seconds=seconds)
        self.credly.advance(seconds)

    def wait(self, seconds: float) -> bool:
        self.advance(seconds)
        return False

    def answer(self, call: serving.Call) -> serving.Reply:
        return self.credly._handle(call)

    def begin_anew(self) -> None:
        self.credly = CredlySimulator()
        self.offset = dt.timedelta()
        self.host.app.config["CREDLY_ENCRYPTION_KEYS"] = KEYS[:1]
        self.host.db.session.remove()

        with self.host.state.engine.begin() as connected:
            for table in reversed(Base.metadata.sorted_tables):
                connected.execute(sa.delete(table))


@contextlib.contextmanager
def make_world(
    make_host: MakeHost, patch: pytest.MonkeyPatch, **config: t.Any
) -> cabc.Iterator[World]:
    """Make one.

    :param config: Settings of the application, and its hooks.
    """
    host = make_host(
        **{
            "past_completions": lambda course, since: made.past(course),
            "CREDLY_RETRY_DELAY": 60,
            **config,
        }
    )

    with (
        host.app.app_context(),
        responses.RequestsMock(assert_all_requests_are_fired=False) as mock,
    ):
        made = World(host, patch)
        serving.register(
            lambda call: made.answer(call),
            mock,
            "https://api.credly.com/v1",
            "https://www.credly.com/oauth/token",
        )

        yield made


@pytest.fixture
def world(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> cabc.Iterator[World]:
    with make_world(make_host, monkeypatch, CREDLY_CONCURRENCY=2) as made:
        yield made


def run_machine(
    machine: type[stateful.RuleBasedStateMachine],
    world: World,
    examples: int = EXAMPLES,
) -> None:
    """Let whatever a machine knows of happen in a world."""
    stateful.run_state_machine_as_test(
        type(machine.__name__, (machine,), {"world": world}),
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
