"""How a view reads the database."""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from sqlalchemy import orm

from ..ledger.transaction import in_session
from .community import here

P = t.ParamSpec("P")
T = t.TypeVar("T")


def read(
    question: cabc.Callable[t.Concatenate[orm.Session, str, P], T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Ask one question about the community of this request, in a session of its own:
    see :func:`.in_session`.
    """
    community = here()
    return in_session(community.engine, question, community.tenant, *args, **kwargs)
