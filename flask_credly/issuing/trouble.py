"""Says what is wrong with Redis, and what mends it: in the log, on the command line and
on the pages alike.
"""

from __future__ import annotations

import re
import typing as t

from ..settings import Settings
from ..words import mark

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
        mark("Redis is a replica that has lost its primary."),
        mark("Let %(setting)s name the primary, no replica."),
    ),
    (
        r"ReadOnlyError|READONLY",
        mark("Redis is a replica, which takes no writes."),
        mark("Let %(setting)s name the primary, no replica."),
    ),
    (
        r"MovedError|\bMOVED\b|AskError|CrossSlot|ClusterDownError|TryAgainError"
        r"|cluster mode|SlotNotCovered|RedisCluster",
        mark("Redis is a cluster, which RQ cannot use."),
        mark("Let %(setting)s name a Redis that is not in cluster mode."),
    ),
    (
        r"NoPermissionError|NOPERM",
        mark("Redis does not permit this user what is needed."),
        mark("The page on servers in our documentation has the line of ACL SETUSER."),
    ),
    (
        r"without any password configured|no password is set",
        mark("Redis is sent a password, and has none."),
        mark("Remove the password from %(setting)s, or give Redis that password."),
    ),
    (
        r"Authentication required|NOAUTH|already authenticated",
        mark("Redis wants a password, and is sent none."),
        mark("Write it into %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"AuthenticationError|AuthorizationError|AuthenticationWrongNumber|WRONGPASS"
        r"|invalid password",
        mark("Redis refuses the user name or the password."),
        mark("Correct them in %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"OutOfMemoryError|\bOOM\b",
        mark("Redis has no memory left."),
        mark("Raise maxmemory of Redis, or remove what fills it."),
    ),
    (
        r"BusyLoadingError|LOADING",
        mark("Redis is loading its data."),
        mark("Wait until it has."),
    ),
    (
        r"max number of clients|Too many connections|MaxConnectionsError",
        mark("Redis takes no more connections."),
        mark("Raise maxclients of Redis, or find who holds so many connections."),
    ),
    (
        r"DENIED|protected mode",
        mark("Redis is in protected mode and refuses other machines."),
        mark("Give Redis a password, and write it into %(setting)s."),
    ),
    (
        r"MISCONF",
        mark("Redis cannot write its data to disk, and takes none."),
        mark("Make room on its disk; its log has the reason."),
    ),
    (
        r"NOREPLICAS",
        mark("Redis lacks replicas, and takes no writes without them."),
        mark("Start them, or lower min-replicas-to-write of Redis."),
    ),
    (
        r"DB index",
        mark("Redis has no database of that number."),
        mark("Correct the number at the end of %(setting)s."),
    ),
    (
        r"unknown command|unknown subcommand",
        mark("Redis lacks a command that RQ needs."),
        mark("Use Redis 6 or later, or Valkey, with no command renamed."),
    ),
    (
        r"WRONGTYPE",
        mark("Something else uses our keys in this Redis."),
        mark("Let %(setting)s name a database of its own, such as redis://HOST:6379/1"),
    ),
    (
        r"InvalidResponse|Protocol Error",
        mark("What answers there is no Redis."),
        mark("Correct the host and the port in %(setting)s."),
    ),
    (
        r"CERTIFICATE_REQUIRED|certificate required|SSLEOFError",
        mark("Redis wants a certificate of this client."),
        mark("Add ?ssl_certfile=FILE&ssl_keyfile=FILE to %(setting)s."),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|CertificateError",
        mark("The certificate of Redis is not accepted."),
        mark(
            "Name the host in %(setting)s as its certificate does, and the certificate"
            " of its authority: ?ssl_ca_certs=FILE"
        ),
    ),
    (
        r"handshake|SSLError|\[SSL",
        mark("Redis does not answer by TLS."),
        mark("Begin %(setting)s with redis://, or name the port that speaks TLS."),
    ),
    (
        r"gaierror|not known|name resolution|getaddrinfo",
        mark("The host name of Redis is not known."),
        mark("Correct the host in %(setting)s."),
    ),
    (
        r"ConnectionRefusedError|Connection refused",
        mark("Redis cannot be reached: nothing listens there."),
        mark("Is it running at the address of %(setting)s?"),
    ),
    (
        r"FileNotFoundError|No such file",
        mark("A file is missing: the socket of Redis, or a certificate."),
        mark("Correct the path in %(setting)s, or start Redis."),
    ),
    (
        r"PermissionError|Permission denied",
        mark("This process may not open the socket of Redis, or a certificate."),
        mark("Let its user read and write that file."),
    ),
    (
        r"ConnectionResetError|BrokenPipeError|closed by server|reset by peer",
        mark("Redis closes the connection."),
        mark("Does its port speak TLS? Then begin %(setting)s with rediss://"),
    ),
    (
        r"No route to host|unreachable",
        mark("Redis cannot be reached: no network leads there."),
        mark("Correct the host in %(setting)s, or the network."),
    ),
    (
        r"TimeoutError|timed out",
        mark("Redis does not answer in time."),
        mark("Is the port of %(setting)s open to this machine, and Redis not busy?"),
    ),
)

_OTHER = (
    mark("Redis cannot be used (%(error)s)."),
    mark("Is it running at the address of %(setting)s?"),
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
                mark("CREDLY_REDIS_URL cannot be used (%(error)s)."),
                mark("Remove what stands after its question mark, or correct it."),
                values,
            )

        return Trouble(
            mark("The function in CREDLY_QUEUE fails (%(error)s)."),
            mark("It takes the app and returns an rq.Queue."),
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
