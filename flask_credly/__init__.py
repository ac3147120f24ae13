"""Issue Credly badges from a Flask application."""

from .catalog import Course as Course
from .catalog import IdEvidence as IdEvidence
from .catalog import Member as Member
from .catalog import PastCompletion as PastCompletion
from .catalog import UrlEvidence as UrlEvidence
from .extension import Credly as Credly
from .signals import badge_accepted as badge_accepted
from .signals import badge_failed as badge_failed
from .signals import badge_issued as badge_issued
from .signals import badge_rejected as badge_rejected
from .signals import badge_replaced as badge_replaced
from .signals import badge_revoked as badge_revoked
from .signals import completion_withdrawn as completion_withdrawn
from .signals import course_completed as course_completed
from .signals import issuance_paused as issuance_paused

__all__ = [
    "Course",
    "Credly",
    "IdEvidence",
    "Member",
    "PastCompletion",
    "UrlEvidence",
    "badge_accepted",
    "badge_failed",
    "badge_issued",
    "badge_rejected",
    "badge_replaced",
    "badge_revoked",
    "completion_withdrawn",
    "course_completed",
    "issuance_paused",
]
