"""Which workers there are."""

from __future__ import annotations

from ..settings import State
from . import bell


def count(state: State) -> int | None:
    """Count the workers that listen on the queue. ``None``: Redis cannot be asked."""
    from redis.exceptions import RedisError
    from rq import Worker

    try:
        queue = bell.web_queue(state)
        return Worker.count(queue=queue)
    except (RedisError, OSError):
        return None
