"""What badges could be issued with instead."""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import threading
import time
import typing as t

import redis
import requests
import rq

from .fake import SCOPE
from .fake import template_id
from .host import Completed
from .host import CONFIG
from .host import Host
from .host import make_host
from .host import ORGANIZATION_ID

QUEUE = "plain"


def loop(url: str, number: int, threads: int) -> dict[str, float]:
    """Issue badges in threads with a session each, and keep no record: what Python
    and requests can do at all.
    """
    token = requests.post(f"{url}/oauth/token", data=_credentials()).json()

    def work(first: int) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {token['access_token']}"

            for each in range(first, number, threads):
                _issue(session, f"{url}/v1", f"loop-{each}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    start, cpu = time.perf_counter(), _cpu()

    for worker in workers:
        worker.start()

    for worker in workers:
        worker.join()

    return {"seconds": time.perf_counter() - start, "cpu": _cpu() - cpu}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _credentials() -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_id": "client",
        "client_secret": "secret",
        "scope": SCOPE,
    }


def _issue(session: requests.Session, api_url: str, member_id: str) -> str:
    answer = session.post(
        f"{api_url}/organizations/{ORGANIZATION_ID}/badges",
        json={
            "recipient_email": f"{member_id}@example.org",
            "issued_to_first_name": "Ada",
            "issued_to_last_name": "Example",
            "badge_template_id": template_id(0),
            "issued_at": "2026-01-01 00:00:00 +0000",
            "issuer_earner_id": member_id,
        },
        timeout=10,
    )
    answer.raise_for_status()
    return t.cast(str, answer.json()["data"]["id"])


def make_queue(redis_url: str) -> rq.Queue:
    return rq.Queue(QUEUE, connection=redis.Redis.from_url(redis_url))


def job(completed_id: int) -> None:
    """Issue one badge, as most people would write it, and save that it was issued."""
    host = _host()
    config = host.app.config

    with host.app.app_context(), requests.Session() as session:
        completed = host.db.session.get(Completed, completed_id)
        assert completed is not None
        answer = session.post(
            config["CREDLY_TOKEN_URL"], data=_credentials(), timeout=10
        )
        answer.raise_for_status()
        session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        _issue(session, config["CREDLY_API_URL"], completed.member_id)
        completed.status = "issued"
        host.db.session.commit()


@functools.cache
def _host() -> Host:
    return make_host(json.loads(os.environ[CONFIG]))


def work(kind: str) -> None:
    """Run RQ's worker of a kind, with the application loaded before it forks."""
    host = _host()
    host.engine.dispose()
    connection = redis.Redis.from_url(host.app.config["CREDLY_REDIS_URL"])
    {"fork": rq.Worker, "simple": rq.SimpleWorker}[kind](
        [QUEUE], connection=connection
    ).work(logging_level="WARNING")


if __name__ == "__main__":
    # The application must be that of the module that the job names.
    from benchmarks import peers

    peers.work(sys.argv[1])
