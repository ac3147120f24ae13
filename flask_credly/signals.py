"""The signals. Your application sends the first two; the extension sends the others.

The sender is the application. Each signal has these keywords:

:data:`course_completed`
    ``member`` (a :class:`.Member`) and ``course_id``. Optional: ``kind``;
    ``completed_at``, an aware time; ``evidence``, up to five of :class:`.UrlEvidence`
    and :class:`.IdEvidence`, for mappings that send it; ``completion_id``, your own id
    of this completion with at most 191 characters, for mappings where a further
    completion counts; ``session``; and ``tenant``, the community, which is required
    outside a request if ``@credly.tenant`` is registered. ``send()`` raises an error
    only if the database has ended your transaction.

:data:`completion_withdrawn`
    ``member_id`` and ``course_id``. Optional: ``kind``; ``withdrawn_at``, an aware
    time, by default now; ``session`` and ``tenant``, as above. The member's last
    completion of the course no longer counts; an option of the mapping decides what
    happens to its badge. A withdrawal that is older than the completion changes
    nothing. Errors are raised as above.

:data:`badge_issued`
    ``member_id``, ``course_id``, ``kind``, ``template_id``, ``badge_id``: Credly's id
    of the badge.

:data:`badge_accepted`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: since when, by Credly's clock, or ``None``. The member
    accepted the badge.

:data:`badge_rejected`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above. The member declined the badge, perhaps after
    accepting it.

:data:`badge_revoked`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above. The badge was revoked, here or at Credly.

:data:`badge_replaced`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above, and ``replaced_by``: Credly's id of the badge that
    replaced it.

:data:`badge_failed`
    ``member_id``, ``course_id``, ``kind``, ``template_id``, ``error``: the reason, in
    words for the admin. It may quote Credly and contain the member's address.

:data:`issuance_paused`
    ``until``: an aware time, or ``None`` if an admin has to reconnect;
    ``reason``: "rate limit", "unavailable", "expired" or "key missing".

If ``@credly.tenant`` is registered, each of these also has ``tenant``.

The process that saved the change to the ledger sends the signal afterwards. That is a
worker, except that a process that loads badge templates or tests the connection may
also discover an expired connection. A pause is sent once, not for each waiting badge.
Test badges send nothing. If a receiver raises an error, it is logged, and everything
else goes on. A badge's status may be sent more than once with the same
``issuance_id``, for instance after a worker died. If several changes happen between
two looks at Credly, only the last one is sent.
"""

from __future__ import annotations

import blinker

_signals = blinker.Namespace()

course_completed: blinker.NamedSignal = _signals.signal("course-completed")
completion_withdrawn: blinker.NamedSignal = _signals.signal("completion-withdrawn")
badge_issued: blinker.NamedSignal = _signals.signal("badge-issued")
badge_accepted: blinker.NamedSignal = _signals.signal("badge-accepted")
badge_rejected: blinker.NamedSignal = _signals.signal("badge-rejected")
badge_revoked: blinker.NamedSignal = _signals.signal("badge-revoked")
badge_replaced: blinker.NamedSignal = _signals.signal("badge-replaced")
badge_failed: blinker.NamedSignal = _signals.signal("badge-failed")
issuance_paused: blinker.NamedSignal = _signals.signal("issuance-paused")
