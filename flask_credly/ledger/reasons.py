"""Why a row is as it is, where that was no answer of Credly's: a code in the ledger,
and words for who reads it.
"""

from __future__ import annotations

from ..models import Issuance
from ..models import Reason

REASONS: dict[Reason, str] = {
    "unmapped": "The mapping was removed.",
    "stopped": "Issuing badges for earlier completions was stopped.",
    "removed": "The integration was removed.",
    "erased": "The member was erased.",
    "perhaps issued": "The member was erased. Credly may have issued the badge.",
    "crashed": (
        "The worker crashed each time it handled this badge. The developer of"
        " this site finds the cause in the log."
    ),
    "dropped": "An admin skipped it before it was issued.",
    "awaits revocation": "The previous badge must be revoked first.",
    "not revoked": "The previous badge could not be revoked.",
    "no duplicates": (
        "The badge template no longer allows duplicates. The badge stays queued"
        " until you allow duplicates for it in Credly."
    ),
    "withdrawn": "The completion was withdrawn.",
    "withdrawn first": "The completion was withdrawn before it came in.",
    "awaits approval": (
        "The completion was withdrawn along with many others. An admin must"
        " decide whether to revoke the badge."
    ),
}

TAKEN_UP_AGAIN: tuple[Reason, ...] = ("unmapped", "stopped")
"""Of rows that were cancelled before anything was sent: a later run takes them up."""


def explain(row: Issuance) -> str | None:
    """Say what went wrong with a row. ``None``: nothing."""
    if row.reason is None:
        return row.error

    return REASONS[row.reason]  # type: ignore[index]
