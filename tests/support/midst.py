"""What happens in the midst of something else: between any two transactions of a
worker, or while Credly or the host answers it. And how what was wrong is made shorter.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import os
import random
import typing as t

import pytest

from flask_credly.ledger import claim
from flask_credly.ledger import polls
from flask_credly.ledger import settle
from tests.support.world import Died
from tests.support.world import World

FIRST = int(os.environ.get("CREDLY_TEST_FIRST", "0"))
"""The number of the first example: each is the same each time."""

Moment = tuple[object, str]
"""A function that a worker calls: one transaction, or one request."""

REQUEST, HOOK = (None, "request"), (None, "hook")


class Machine:
    """A host, its members, its admins and its workers, and what they do next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.world.begin_anew()
        self.host = world.host
        self.engine = self.host.state.engine
        self.credly = world.credly
        self.world.answer = self.answer  # type: ignore[method-assign]
        self.meeting: tuple[Moment, bool, cabc.Callable[[], None]] | None = None
        self.errors: list[BaseException] = []
        self.is_dead = False
        self.story: list[str] = []

    def go_on(self, seed: int) -> None:
        """Do anything."""
        raise NotImplementedError

    def nothing_is_broken(self) -> None:
        """Check what holds at any time."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Let all come to its end, and check what holds then."""
        raise NotImplementedError

    def do(self, name: str, *about: t.Any) -> None:
        """Do one thing."""
        raise NotImplementedError

    def at(self, moment: Moment, after: bool) -> None:
        if self.meeting is None or self.meeting[:2] != (moment, after):
            return

        _, _, happen = self.meeting
        self.meeting = None

        with self.host.app.app_context():
            try:
                happen()
            except Exception as e:
                self.errors.append(e)

    def answer(self, call: t.Any) -> t.Any:
        is_token = "oauth" in call.path

        if not is_token:
            self.at(REQUEST, False)

        reply = self.reply(call)

        if not is_token:
            self.at(REQUEST, True)

        return reply

    def reply(self, call: t.Any) -> t.Any:
        """Answer as Credly does."""
        return self.world.credly._handle(call)

    @contextlib.contextmanager
    def meet(
        self, moment: Moment | None, after: bool, what: tuple[t.Any, ...] | None
    ) -> cabc.Iterator[None]:
        """Let something happen at a moment, once, or a worker die at it.

        :param what: For :meth:`do`. ``None``: the worker dies.
        """

        def happen() -> None:
            if what is None:
                self.is_dead = True
                raise Died

            self.do(*what)

        with pytest.MonkeyPatch.context() as patch:
            # A worker that has died does nothing more.
            for owner, name in (
                (claim, "release"),
                (settle, "settle"),
                (polls, "leave"),
            ):
                patch.setattr(owner, name, self.unless_dead(getattr(owner, name)))

            if moment is not None:
                self.meeting = (moment, after, happen)
                owner, name = moment

                if owner is not None:
                    true = getattr(owner, name)

                    def call(*args: t.Any, **given: t.Any) -> t.Any:
                        self.at(moment, False)
                        found = true(*args, **given)
                        self.at(moment, True)
                        return found

                    patch.setattr(owner, name, call)

            try:
                yield
            except Died:
                pass
            finally:
                self.meeting = None
                self.is_dead = False
                self.host.db.session.remove()

        if self.errors:
            raise self.errors[0]

    def unless_dead(self, true: t.Any) -> t.Any:
        def call(*args: t.Any, **given: t.Any) -> t.Any:
            if self.is_dead:
                raise Died

            return true(*args, **given)

        return call


Make = cabc.Callable[[World], Machine]


def play(
    make: Make, world: World, seeds: cabc.Iterable[int]
) -> tuple[str, Exception] | None:
    """Let it all happen.

    :return: What happened, and what was wrong then.
    """
    machine = make(world)

    try:
        for each in seeds:
            machine.go_on(each)
            machine.nothing_is_broken()

        machine.teardown()
    except Exception as e:
        return "\n".join(machine.story), e

    return None


def shorten(make: Make, world: World, seeds: list[int]) -> list[int]:
    """Leave out what is not needed for anything to be wrong."""
    size = len(seeds)

    while size:
        for at in range(0, len(seeds), size):
            fewer = seeds[:at] + seeds[at + size :]

            if play(make, world, fewer) is not None:
                seeds = fewer
                break
        else:
            size //= 2

    return seeds


def run_examples(make: Make, world: World, examples: int, steps: int) -> None:
    """Let anything happen, in so many examples of so many steps.

    Not by Hypothesis: of what may happen it leaves most out of an example.
    """
    for number in range(FIRST, FIRST + examples):
        chance = random.Random(number)
        seeds = [chance.getrandbits(32) for _ in range(steps)]

        if play(make, world, seeds) is not None:
            found = play(make, world, shorten(make, world, seeds))
            assert found is not None
            pytest.fail(f"{number}: {found[1]!r}\n{found[0]}")
