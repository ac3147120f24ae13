"""How a view reads the database."""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from sqlalchemy import orm

from ..ledger.transaction import in_session
from ..settings import get_state

P = t.ParamSpec("P")
T = t.TypeVar("T")


def read(
    question: cabc.Callable[t.Concatenate[orm.Session, P], T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Ask one question, in a session of its own: see :func:`.in_session`."""
    return in_session(get_state().engine, question, *args, **kwargs)
