"""Says what is wrong with Redis, and what mends it: in the log, on the command line and
on the pages alike.
"""

from __future__ import annotations

import re
import typing as t

from ..i18n import gettext_noop
from ..settings import Settings

if t.TYPE_CHECKING:
    import rq


class Trouble(t.NamedTuple):
    """What is wrong, and what mends it. Both are constants of the catalogue, so that a
    page can show them in its language.

    :param values: Stand in both of them as ``%(name)s``.
    """

    cause: str
    mend: str
    values: dict[str, str]

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"

    @property
    def what(self) -> str:
        """What is wrong, in English."""
        return self.cause % self.values

    @property
    def remedy(self) -> str:
        """What mends it, in English."""
        return self.mend % self.values


class WrongQueue(TypeError):
    """What CREDLY_QUEUE gives cannot be used. The message says what to write."""

    def __init__(self, cause: str, mend: str) -> None:
        super().__init__(f"{cause} {mend}")
        self.cause = cause
        self.mend = mend


# What is searched for in the names and texts of an error and of what it comes from;
# the first that is found counts. Texts of Redis are never shown: they may repeat a
# command, or an address.
_KNOWN = (
    (
        r"MasterDownError|MASTERDOWN",
        gettext_noop("Redis is a replica that has lost its primary."),
        gettext_noop("Let %(setting)s name the primary, no replica."),
    ),
    (
        r"ReadOnlyError|READONLY",
        gettext_noop("Redis is a replica, which takes no writes."),
        gettext_noop("Let %(setting)s name the primary, no replica."),
    ),
    (
        r"MovedError|\bMOVED\b|AskError|CrossSlot|ClusterDownError|TryAgainError"
        r"|cluster mode|SlotNotCovered|RedisCluster",
        gettext_noop("Redis is a cluster, which RQ cannot use."),
        gettext_noop("Let %(setting)s name a Redis that is not in cluster mode."),
    ),
    (
        r"NoPermissionError|NOPERM",
        gettext_noop("Redis does not permit this user what is needed."),
        gettext_noop(
            "The page on servers in our documentation has the line of ACL SETUSER."
        ),
    ),
    (
        r"without any password configured|no password is set",
        gettext_noop("Redis is sent a password, and has none."),
        gettext_noop(
            "Remove the password from %(setting)s, or give Redis that password."
        ),
    ),
    (
        r"Authentication required|NOAUTH|already authenticated",
        gettext_noop("Redis wants a password, and is sent none."),
        gettext_noop("Write it into %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"AuthenticationError|AuthorizationError|AuthenticationWrongNumber|WRONGPASS"
        r"|invalid password",
        gettext_noop("Redis refuses the user name or the password."),
        gettext_noop("Correct them in %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"OutOfMemoryError|\bOOM\b",
        gettext_noop("Redis has no memory left."),
        gettext_noop("Raise maxmemory of Redis, or remove what fills it."),
    ),
    (
        r"BusyLoadingError|LOADING",
        gettext_noop("Redis is loading its data."),
        gettext_noop("Wait until it has."),
    ),
    (
        r"max number of clients|Too many connections|MaxConnectionsError",
        gettext_noop("Redis takes no more connections."),
        gettext_noop(
            "Raise maxclients of Redis, or find who holds so many connections."
        ),
    ),
    (
        r"DENIED|protected mode",
        gettext_noop("Redis is in protected mode and refuses other machines."),
        gettext_noop("Give Redis a password, and write it into %(setting)s."),
    ),
    (
        r"MISCONF",
        gettext_noop("Redis cannot write its data to disk, and takes none."),
        gettext_noop("Make room on its disk; its log has the reason."),
    ),
    (
        r"NOREPLICAS",
        gettext_noop("Redis lacks replicas, and takes no writes without them."),
        gettext_noop("Start them, or lower min-replicas-to-write of Redis."),
    ),
    (
        r"DB index",
        gettext_noop("Redis has no database of that number."),
        gettext_noop("Correct the number at the end of %(setting)s."),
    ),
    (
        r"unknown command|unknown subcommand",
        gettext_noop("Redis lacks a command that RQ needs."),
        gettext_noop("Use Redis 6 or later, or Valkey, with no command renamed."),
    ),
    (
        r"WRONGTYPE",
        gettext_noop("Something else uses our keys in this Redis."),
        gettext_noop(
            "Let %(setting)s name a database of its own, such as redis://HOST:6379/1"
        ),
    ),
    (
        r"InvalidResponse|Protocol Error",
        gettext_noop("What answers there is no Redis."),
        gettext_noop("Correct the host and the port in %(setting)s."),
    ),
    (
        r"CERTIFICATE_REQUIRED|certificate required|SSLEOFError",
        gettext_noop("Redis wants a certificate of this client."),
        gettext_noop("Add ?ssl_certfile=FILE&ssl_keyfile=FILE to %(setting)s."),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|CertificateError",
        gettext_noop("The certificate of Redis is not accepted."),
        gettext_noop(
            "Name the host in %(setting)s as its certificate does, and the certificate"
            " of its authority: ?ssl_ca_certs=FILE"
        ),
    ),
    (
        r"handshake|SSLError|\[SSL",
        gettext_noop("Redis does not answer by TLS."),
        gettext_noop(
            "Begin %(setting)s with redis://, or name the port that speaks TLS."
        ),
    ),
    (
        r"gaierror|not known|name resolution|getaddrinfo",
        gettext_noop("The host name of Redis is not known."),
        gettext_noop("Correct the host in %(setting)s."),
    ),
    (
        r"ConnectionRefusedError|Connection refused",
        gettext_noop("Redis cannot be reached: nothing listens there."),
        gettext_noop("Is it running at the address of %(setting)s?"),
    ),
    (
        r"FileNotFoundError|No such file",
        gettext_noop("A file is missing: the socket of Redis, or a certificate."),
        gettext_noop("Correct the path in %(setting)s, or start Redis."),
    ),
    (
        r"PermissionError|Permission denied",
        gettext_noop(
            "This process may not open the socket of Redis, or a certificate."
        ),
        gettext_noop("Let its user read and write that file."),
    ),
    (
        r"ConnectionResetError|BrokenPipeError|closed by server|reset by peer",
        gettext_noop("Redis closes the connection."),
        gettext_noop("Does its port speak TLS? Then begin %(setting)s with rediss://"),
    ),
    (
        r"No route to host|unreachable",
        gettext_noop("Redis cannot be reached: no network leads there."),
        gettext_noop("Correct the host in %(setting)s, or the network."),
    ),
    (
        r"TimeoutError|timed out",
        gettext_noop("Redis does not answer in time."),
        gettext_noop(
            "Is the port of %(setting)s open to this machine, and Redis not busy?"
        ),
    ),
)

_OTHER = (
    gettext_noop("Redis cannot be used (%(error)s)."),
    gettext_noop("Is it running at the address of %(setting)s?"),
)


def explain(error: BaseException, settings: Settings) -> Trouble:
    """Find what is wrong from what came up when the queue was used."""
    from redis.exceptions import RedisError

    if isinstance(error, WrongQueue):
        return Trouble("%(cause)s", "%(mend)s", vars(error))

    by_name = isinstance(settings.queue, str)
    setting = "CREDLY_REDIS_URL" if by_name else "CREDLY_QUEUE"
    values = {"setting": setting, "error": type(error).__name__}

    if not isinstance(error, (RedisError, OSError)):
        # redis-py has no class for an option that it does not know.
        if by_name:
            return Trouble(
                gettext_noop("CREDLY_REDIS_URL cannot be used (%(error)s)."),
                gettext_noop(
                    "Remove what stands after its question mark, or correct it."
                ),
                values,
            )

        return Trouble(
            gettext_noop("The function in CREDLY_QUEUE fails (%(error)s)."),
            gettext_noop("It takes the app and returns an rq.Queue."),
            values,
        )

    said = _said(error)

    for pattern, cause, mend in _KNOWN:
        if re.search(pattern, said):
            return Trouble(cause, mend, values)

    return Trouble(*_OTHER, values)


def _said(error: BaseException) -> str:
    """Gather the names and texts of an error and of what it comes from."""
    found: list[BaseException] = []
    current: BaseException | None = error

    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__

    return " ".join(f"{type(each).__name__} {each}" for each in found)


def try_out(queue: rq.Queue) -> None:
    """Write to Redis as a job does that is put into a queue: several keys at once, so
    that neither a replica nor a cluster passes, nor a user that may not.

    :raises redis.RedisError: If Redis does not take it.
    """
    with queue.connection.pipeline() as pipeline:
        pipeline.set(f"flask-credly:doctor:{queue.name}", 1, ex=1)
        pipeline.set(f"{queue.key}:doctor", 1, ex=1)
        pipeline.execute()
