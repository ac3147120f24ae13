"""The same with plain RQ, as most people would write it: a job per completion, put in
the queue after the commit, tried once more when it fails.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os

import redis
import requests
import rq

from .child import CONFIG
from .host import Completed
from .host import Host
from .host import make_host
from .host import member

QUEUE = "badges"


def make_queue(redis_url: str) -> rq.Queue:
    """Make the queue."""
    return rq.Queue(QUEUE, connection=redis.Redis.from_url(redis_url))


def enqueue(queue: rq.Queue, completed_id: int) -> None:
    """Ask for the badge of one completion."""
    queue.enqueue(issue, completed_id, retry=rq.Retry(max=1))


def issue(completed_id: int) -> None:
    """Issue the badge of one completion, and save that it was issued."""
    host = _host()

    with host.app.app_context():
        completed = host.db.session.get(Completed, completed_id)
        post_badge(host.app.config, completed.member_id)
        completed.status = "issued"
        host.db.session.commit()


def post_badge(config: dict, member_id: str) -> None:
    """Ask Credly for a badge."""
    timeout = config["CREDLY_TIMEOUT"]
    earner = member(member_id)
    answer = requests.post(
        config["CREDLY_TOKEN_URL"],
        data={
            "grant_type": "client_credentials",
            "client_id": config["STORM_CLIENT_ID"],
            "client_secret": config["STORM_CLIENT_SECRET"],
            "scope": "badge_templates issued_badges",
        },
        timeout=timeout,
    )
    answer.raise_for_status()
    answer = requests.post(
        f"{config['CREDLY_API_URL']}/organizations"
        f"/{config['STORM_ORGANIZATION_ID']}/badges",
        json={
            "recipient_email": earner.email,
            "issued_to_first_name": earner.first_name,
            "issued_to_last_name": earner.last_name,
            "badge_template_id": config["STORM_TEMPLATE_ID"],
            "issued_at": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S +0000}",
            "issuer_earner_id": earner.id,
        },
        headers={
            "Authorization": f"Bearer {answer.json()['access_token']}",
            "Accept": "application/json",
        },
        timeout=timeout,
    )
    answer.raise_for_status()


@functools.cache
def _host() -> Host:
    return make_host(json.loads(os.environ[CONFIG]))


def work() -> None:
    """Run a worker that has loaded the application before it forks.

    No scheduler: a retry without an interval does not need one.
    """
    host = _host()

    # Its work horses must not share what this process has open.
    with host.app.app_context():
        host.db.engine.dispose()

    connection = redis.Redis.from_url(host.app.config["CREDLY_REDIS_URL"])
    rq.Worker([QUEUE], connection=connection).work()


if __name__ == "__main__":
    # The job's name must be the one that can be imported.
    from tests.storm import naive

    naive.work()
