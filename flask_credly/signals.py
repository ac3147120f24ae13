"""The signals. The host sends the first; the extension sends the others.

:data:`course_completed`
    ``course_completed.send(app, member=Member(...), course_id="py-101")``, with
    ``kind``, ``completed_at`` (aware) and ``session`` as options.
:data:`badge_issued`, :data:`badge_failed`
    Sent in the worker after the ledger row was saved, with ``member_id``,
    ``course_id``, ``kind`` and ``template_id``; ``badge_failed`` adds ``error``.
:data:`issuance_paused`
    Sent in the worker when issuing stops for a while, with ``until``, an aware
    time, and ``reason``.
"""

from __future__ import annotations

import blinker

_signals = blinker.Namespace()

course_completed = _signals.signal("course-completed")
badge_issued = _signals.signal("badge-issued")
badge_failed = _signals.signal("badge-failed")
issuance_paused = _signals.signal("issuance-paused")
