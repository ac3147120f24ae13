"""What follows what was sent: a notice to the workers, or a record for the log."""

from __future__ import annotations

import dataclasses
import logging
import typing as t

from ..catalog import Completion
from ..catalog import Withdrawal
from ..issuing import notifier
from ..state import AppState
from .lost import note_lost
from .lost import note_lost_withdrawal

logger = logging.getLogger("flask_credly")


class Outcome(t.Protocol):
    """What is done about what was sent once it is known what became of it."""

    def recorded(self) -> None:
        """It is durable."""

    def adds_nothing(self) -> None:
        """There is nothing to write."""

    def taken_back(self) -> None:
        """The transaction that it was sent in was rolled back."""

    def lost(self) -> None:
        """It could not be recorded. Called where the exception is handled."""


@dataclasses.dataclass(frozen=True)
class OfCompletion(Outcome):
    """What is done about a completion."""

    state: AppState
    completion: Completion

    def recorded(self) -> None:
        """The row is durable."""
        notifier.notify_soon(self.state)

    def adds_nothing(self) -> None:
        """The course is not mapped, or the row was there."""
        # No member's id: what stands in the ledger is named by no record.
        logger.debug(
            "A completion of %s %r was ignored. It is not mapped, or the member"
            " already has a badge in the ledger.",
            self.completion.kind,
            self.completion.course_id,
        )

    def taken_back(self) -> None:
        """The transaction that it was sent in was rolled back."""
        done = self.completion
        logger.warning(
            "A completion was rolled back with the transaction that it was sent"
            " in: member %r, %s %r.",
            done.member.id,
            done.kind,
            done.course_id,
            extra={
                "credly_event": "completion_taken_back",
                "credly_member": done.member.id,
                "credly_kind": done.kind,
                "credly_course": done.course_id,
                "credly_completed_at": done.completed_at,
            },
        )

    def lost(self) -> None:
        """It could not be recorded. Called where the exception is handled."""
        done = self.completion
        given = {
            "member": done.member,
            "course_id": done.course_id,
            "kind": done.kind,
            "completed_at": done.completed_at,
            "tenant": done.tenant,
        }
        note_lost(self.state.app, given, ended=True)


@dataclasses.dataclass(frozen=True)
class OfWithdrawal(Outcome):
    """What is done about a completion that was withdrawn."""

    state: AppState
    withdrawal: Withdrawal

    def recorded(self) -> None:
        """It is written down."""
        notifier.notify_soon(self.state)

    def adds_nothing(self) -> None:
        """The course is not mapped, or there is nothing to take back."""
        logger.debug(
            "A withdrawn completion of %s %r was ignored. The course is not mapped, it"
            " is already known, or no mapping revokes badges.",
            self.withdrawal.kind,
            self.withdrawal.course_id,
        )

    def taken_back(self) -> None:
        """The transaction that it was sent in was rolled back."""
        it = self.withdrawal
        logger.warning(
            "A withdrawal was rolled back with the transaction that it was sent"
            " in: member %r, %s %r.",
            it.member_id,
            it.kind,
            it.course_id,
            extra={
                "credly_event": "withdrawal_taken_back",
                "credly_member": it.member_id,
                "credly_kind": it.kind,
                "credly_course": it.course_id,
                "credly_withdrawn_at": it.withdrawn_at,
            },
        )

    def lost(self) -> None:
        """It could not be recorded. Called where the exception is handled."""
        note_lost_withdrawal(dataclasses.asdict(self.withdrawal))
