"""Closes an account's gate after an answer that the next request would get too."""

from __future__ import annotations

from ..errors import CredlyError
from ..errors import InTrouble
from ..errors import RateLimited
from ..errors import SecretUnreadable
from ..errors import Unavailable
from ..ledger import gates
from ..ledger.decide import Answer
from ..state import Community
from . import announce

KEYLESS_FOR = 120.0
"""Seconds for which a worker without the key is taken to be there after one of its
drains: RQ's own says so with each of them only.
"""


def close(
    state: Community, generation: str, answer: Answer, error: CredlyError
) -> None:
    """Close the gate, and say so.

    :param answer: What the error is to the decision table.
    """
    if isinstance(error, SecretUnreadable):
        announce.keyless(state, generation, KEYLESS_FOR)
        return

    if answer == "unauthorized":
        announce.expired(state, generation, error)
        return

    reason: gates.Reason

    if isinstance(error, RateLimited):
        reason, seconds = "rate limit", error.retry_after
    else:
        reason, seconds = "unavailable", 0.0

    if isinstance(error, (InTrouble, Unavailable)):
        seconds = error.retry_after

    until = gates.pause(
        state.engine, state.tenant, generation, reason, seconds, error.detail
    )

    if until is not None:
        announce.paused(state, until, reason, error)
