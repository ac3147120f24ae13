"""A web process: completes courses at a random pace until it is done or killed.

What it tried is in its journal before it is tried; what was committed, right after.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

import redis
import rq
import sqlalchemy as sa
from flask import has_request_context

from flask_credly import course_completed

from . import naive
from .child import CONFIG
from .child import log_everything
from .host import Completed
from .host import COURSE
from .host import Half
from .host import Host
from .host import Journal
from .host import make_host
from .host import member
from .host import read_journal

AGAIN = 0.05
"""Share of completions that are signalled a second time."""

MEETING = 3.0
"""Seconds between two moments at which all web processes complete for the same members,
in different order: their transactions wait for each other, and deadlock.
"""

PAIRS = 8
"""Transactions of a process at such a moment."""


def complete(
    host: Host,
    journal: Journal,
    rng: random.Random,
    tenant: str,
    member_id: str,
    course_id: str = COURSE.id,
) -> None:
    """Complete a course as a view does: the host's row, the signal, the commit."""
    with host.request_of(tenant):
        session = host.db.session
        journal.write("attempted", tenant, member_id, course_id)

        try:
            way = rng.choice(["added", "flushed", "core"])
            values = {"tenant": tenant, "member_id": member_id}

            if way == "core":
                session.execute(sa.insert(Completed).values(**values))
            else:
                session.add(Completed(**values))

            if way == "flushed":
                session.flush()

            _send(host, journal, tenant, member_id, course_id)
            session.commit()
        except Exception as e:
            journal.write("refused", tenant, member_id, course_id, repr(e))
        else:
            journal.write("acknowledged", tenant, member_id, course_id)
        finally:
            session.remove()


def _send(
    host: Host, journal: Journal, tenant: str, member_id: str, course_id: str
) -> None:
    # In a request, the community is the request's.
    named = {} if has_request_context() else host.named(tenant)

    try:
        course_completed.send(
            host.app, member=member(member_id, tenant), course_id=course_id, **named
        )
    except sa.exc.DBAPIError:
        # The database has ended the host's transaction, and the host is told.
        raise
    except Exception as e:
        journal.write("broken", tenant, member_id, course_id, repr(e))


def complete_pair(
    host: Host, journal: Journal, rng: random.Random, name: str, slot: int
) -> None:
    """Complete a course for two members in one transaction, with a row of the host's
    before and after: another process does the same in the other order. Outside of a
    request, so that the signal names the community.

    The host handles an error of the signal as it likes: it gives up, or goes on to its
    commit.
    """
    session = host.db.session
    pair = [f"pair-{slot}-{which}" for which in "ab"]
    rng.shuffle(pair)
    goes_on = rng.random() < 0.5
    tenant = host.tenants[slot % len(host.tenants)]
    told = ""

    for member_id in pair:
        journal.write("attempted", tenant, member_id, COURSE.id)

    try:
        session.add(Half(name=name, half="first"))
        session.flush()

        for member_id in pair:
            try:
                _send(host, journal, tenant, member_id, COURSE.id)
            except sa.exc.DBAPIError as e:
                told = repr(e)

                if not goes_on:
                    raise

            time.sleep(0.02)

        session.add(Half(name=name, half="second"))
        session.commit()
    except Exception as e:
        for member_id in pair:
            journal.write("refused", tenant, member_id, COURSE.id, f"{told} {e!r}")
    else:
        journal.write("kept", tenant, name, COURSE.id)

        for member_id in pair:
            journal.write("acknowledged", tenant, member_id, COURSE.id)
    finally:
        session.remove()


def _meet(
    host: Host, journal: Journal, rng: random.Random, name: str, meeting: int
) -> None:
    """Complete for the same members as the others, at the same time."""
    time.sleep(max(0, meeting * MEETING + 1 - time.time()))

    for number in range(PAIRS):
        own = f"{name}-{os.getpid()}-{meeting}-{number}"
        complete_pair(host, journal, rng, own, meeting * PAIRS + number)


def complete_plainly(
    host: Host, queue: rq.Queue, journal: Journal, member_id: str
) -> None:
    """The same for the plain RQ job: the host's row, the commit, the job."""
    session = host.db.session
    [tenant] = host.tenants
    about = tenant, member_id, COURSE.id
    journal.write("attempted", *about)

    try:
        done = Completed(member_id=member_id)
        session.add(done)
        session.commit()
        journal.write("acknowledged", *about)

        try:
            naive.enqueue(queue, done.id)
        except redis.RedisError as e:
            journal.write("not queued", *about, repr(e))
    except Exception as e:
        journal.write("refused", *about, repr(e))
    finally:
        session.remove()


def _signal_again(host: Host, journal: Journal, tenant: str, member_id: str) -> None:
    # Without a transaction of the host's, nothing is raised.
    try:
        course_completed.send(
            host.app,
            member=member(member_id, tenant),
            course_id=COURSE.id,
            **host.named(tenant),
        )
    except Exception as e:
        journal.write("broken", tenant, member_id, COURSE.id, repr(e))


def main(system: str, path: str, name: str, quota: int, pace: float) -> None:
    """Complete ``quota`` courses, going on where the process before this one was
    killed: for members ``name``-0, ``name``-1 and so on, each in every community.
    """
    log_everything()
    tried = [
        entry
        for entry in read_journal(path)
        if entry.what == "attempted" and entry.member_id.startswith(f"{name}-")
    ]
    rng = random.Random(f"{name} {len(tried)}")
    journal = Journal(path)
    host = make_host(json.loads(os.environ[CONFIG]))
    queue = naive.make_queue(host.app.config["CREDLY_REDIS_URL"])

    met = int(time.time() / MEETING)

    with host.app.app_context():
        for number in range(len(tried), quota):
            tenant = host.tenants[number % len(host.tenants)]
            member_id = f"{name}-{number // len(host.tenants)}"

            if system != "naive-rq" and (now := int(time.time() / MEETING)) != met:
                met = now
                _meet(host, journal, rng, name, met)

            if system == "naive-rq":
                complete_plainly(host, queue, journal, member_id)
            else:
                complete(host, journal, rng, tenant, member_id)

                if rng.random() < AGAIN:
                    _signal_again(host, journal, tenant, member_id)

            time.sleep(rng.uniform(0, 2 * pace))


if __name__ == "__main__":
    _, system, path, name, quota, pace = sys.argv
    main(system, path, name, int(quota), float(pace))
