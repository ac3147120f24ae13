"""Text that is not to be seen."""

from __future__ import annotations

import typing as t


class Secret(str):
    """A Client Secret or an access token. Text to whoever sends it, but hidden in what
    is made of it for developers: a traceback that shows variables, the ``repr`` of what
    holds it. It cannot be serialized.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce_ex__(self, protocol: t.SupportsIndex) -> t.NoReturn:
        raise TypeError("A secret is not to be written down.")
