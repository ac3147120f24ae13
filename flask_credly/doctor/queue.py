"""Whether Redis is reached, and workers listen."""

from __future__ import annotations

from ..issuing import trouble
from ..issuing import workers
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import warning


def check_redis(case: Case) -> Finding:
    try:
        trouble.try_out(case.queue)
    except Exception as e:  # whatever a host's function raises
        found = trouble.explain(e, case.state.settings)
        return error(f"{found.what} Badges stay queued.", found.remedy)

    return ok("Reached.")


def check_workers(case: Case) -> Finding:
    if workers.is_suspended(case.queue):
        return error(
            "RQ is suspended on this Redis, so no worker takes jobs. Badges"
            " stay queued.",
            "Run rq resume, with --url if Redis is not on this machine.",
        )

    if not case.listening:
        case.shared.alone = True
        return warning(
            f"No worker listens on the queue {case.queue.name!r}.",
            "Run flask credly worker",
        )

    return ok(f"{len(case.listening)} on the queue {case.queue.name!r}.")


def check_queue(case: Case) -> Finding:
    own = workers.signature(case.state.engine)
    others = [each for each in case.listening.values() if each not in (own, None)]

    if others:
        return error(
            f"Another application shares the queue {case.queue.name!r}."
            f" {len(others)} of its {len(case.listening)} workers belong to"
            " that application and do not issue these badges.",
            "Set another CREDLY_QUEUE in one application and restart its workers.",
        )

    return ok("No other application uses it.")


def check_jobs(case: Case) -> Finding:
    failed = [
        each
        for each in workers.failures(case.queue)
        # Of one that has ended since, it may be mended.
        if each.worker in case.listening and not each.mended
    ]

    if any(each.ours and each.error == "DeserializationError" for each in failed):
        return error(
            "A worker cannot read the jobs because it uses another serializer.",
            f"Start it with: rq worker --serializer json {case.queue.name}",
        )

    if errors := sorted({each.error for each in failed if each.ours}):
        return error(
            f"Jobs failed ({', '.join(errors)}).",
            "The worker's log has the cause.",
        )

    if failed:
        return warning(
            "Another program puts jobs into this queue, and they fail.",
            "Move those jobs to another queue, or change CREDLY_QUEUE.",
        )

    return ok("No job failed.")
