"""The signals. The host sends the first two; the extension sends the others.

The sender is the application. What comes with each, as keywords:

:data:`course_completed`
    ``member`` (a :class:`.Member`), ``course_id``; as options ``kind``,
    ``completed_at`` (an aware time), ``evidence`` (up to five of :class:`.UrlEvidence`
    and :class:`.IdEvidence`, for mappings that send it), ``completion_id`` (your own id
    of this completion, of at most 191 characters, where a further one counts),
    ``session``, and ``tenant``, the community, which is required outside of a request
    where the host has ``@credly.tenant``. The only error that rises out of ``send()``
    is one by which the database has ended the host's transaction.

:data:`completion_withdrawn`
    ``member_id``, ``course_id``; as options ``kind``, ``withdrawn_at`` (an aware time:
    now, where it is left out), ``session`` and ``tenant``, as above. The member's last
    completion of the course does not count any more: what becomes of its badge is an
    option of the mapping. One that is older than the completion changes nothing. What
    rises is as above.

:data:`badge_issued`
    ``member_id``, ``course_id``, ``kind``, ``template_id``, ``badge_id``, Credly's id
    of the badge.

:data:`badge_accepted`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: since when, by Credly's clock, or ``None``. The member has
    accepted the badge.

:data:`badge_rejected`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above. The member has declined the badge, perhaps
    after it was accepted.

:data:`badge_revoked`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above. The badge was revoked, here or at Credly.

:data:`badge_replaced`
    ``issuance_id``, ``member_id``, ``course_id``, ``kind``, ``template_id``,
    ``badge_id``, ``at``: as above, and ``replaced_by``: Credly's id of the badge that
    took its place.

:data:`badge_failed`
    ``member_id``, ``course_id``, ``kind``, ``template_id``, ``error``: the reason, in
    words for the admin. What it quotes of Credly may hold the member's address.

:data:`issuance_paused`
    ``until``: an aware time, or ``None`` where an admin has to reconnect;
    ``reason``: "rate limit", "unavailable" or "expired".

Where the host has ``@credly.tenant``, each of these also brings ``tenant``.

They are sent after the ledger was saved, by the process that saved it: a worker's, but
that an expired connection may also be found by one that loads the badge templates or
tests the connection. A pause is sent once, not for each badge that waits. Test badges
send nothing. A receiver that raises is logged, and stops nothing. What became of a
badge may be told more than once, with the same ``issuance_id``: after a worker's death,
for example. What happens between two looks at Credly is told as what came of it.
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
