"""What follows a completion: a notice to the workers, or a record for the log."""

from __future__ import annotations

import dataclasses
import logging

from ..catalog import Completion
from ..issuing import notifier
from ..state import AppState
from .lost import note_lost

logger = logging.getLogger("flask_credly")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is done about a completion once it is known what became of it."""

    state: AppState
    completion: Completion

    def recorded(self) -> None:
        """The row is durable."""
        notifier.notify_soon(self.state)

    def adds_nothing(self) -> None:
        """The course is not mapped, or the row was there."""
        # No member's id: what stands in the ledger is named by no record.
        logger.debug(
            "A completion of %s %r adds nothing: that is not mapped, or the member's"
            " badge is in the ledger.",
            self.completion.kind,
            self.completion.course_id,
        )

    def taken_back(self) -> None:
        """The transaction that it was sent in was rolled back."""
        done = self.completion
        logger.warning(
            "A completion was taken back with the transaction that it was sent in:"
            " member %r, %s %r.",
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
