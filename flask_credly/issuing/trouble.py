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
        gettext_noop("Redis is a replica and has lost its primary."),
        gettext_noop("Set %(setting)s to the primary."),
    ),
    (
        r"ReadOnlyError|READONLY",
        gettext_noop("Redis is a read-only replica."),
        gettext_noop("Set %(setting)s to the primary."),
    ),
    (
        # Older versions of redis-py pass the code on as it is.
        r"MovedError|\bMOVED\b|AskError|\bASK\b|(?i:CrossSlot|ClusterDown|TryAgain)"
        r"|cluster mode|SlotNotCovered|RedisCluster",
        gettext_noop("Redis is a cluster. RQ does not support clusters."),
        gettext_noop("Set %(setting)s to a Redis that is not in cluster mode."),
    ),
    (
        r"NoPermissionError|NOPERM",
        gettext_noop("The Redis user lacks permissions."),
        gettext_noop(
            "Grant them with the ACL SETUSER line in docs/recipes/servers.md."
        ),
    ),
    (
        r"without any password configured|no password is set",
        gettext_noop("A password was sent, but Redis has none."),
        gettext_noop("Remove the password from %(setting)s, or set it in Redis."),
    ),
    (
        r"Authentication required|NOAUTH|already authenticated",
        gettext_noop("Redis requires a password."),
        gettext_noop("Add it to %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"AuthenticationError|AuthorizationError|AuthenticationWrongNumber|WRONGPASS"
        r"|invalid password",
        gettext_noop("Redis rejected the user name or password."),
        gettext_noop("Correct them in %(setting)s: redis://USER:PASSWORD@HOST:6379/0"),
    ),
    (
        r"OutOfMemoryError|\bOOM\b",
        gettext_noop("Redis is out of memory."),
        gettext_noop("Raise maxmemory in Redis, or delete data."),
    ),
    (
        r"BusyLoadingError|LOADING",
        gettext_noop("Redis is still loading its data."),
        gettext_noop("Wait until it has finished."),
    ),
    (
        r"max number of clients|Too many connections|MaxConnectionsError",
        gettext_noop("Redis has no free connections."),
        gettext_noop("Raise maxclients in Redis, or close unused connections."),
    ),
    (
        r"DENIED|protected mode",
        gettext_noop("Redis is in protected mode and rejects other machines."),
        gettext_noop("Set a password in Redis and add it to %(setting)s."),
    ),
    (
        r"MISCONF",
        gettext_noop("Redis cannot save to disk and rejects writes."),
        gettext_noop("See the Redis log for the cause, such as a full disk."),
    ),
    (
        r"NOREPLICAS",
        gettext_noop("Redis has too few replicas and rejects writes."),
        gettext_noop("Start the replicas, or lower min-replicas-to-write in Redis."),
    ),
    (
        r"DB index",
        gettext_noop("Redis has no database with this number."),
        gettext_noop("Correct the number at the end of %(setting)s."),
    ),
    (
        r"unknown command|unknown subcommand",
        gettext_noop("Redis does not support a command that RQ needs."),
        gettext_noop("Use Redis 6 or later, or Valkey, without renamed commands."),
    ),
    (
        r"WRONGTYPE",
        gettext_noop("Another program uses the same keys in this Redis."),
        gettext_noop(
            "Set %(setting)s to a separate database, such as redis://HOST:6379/1"
        ),
    ),
    (
        r"InvalidResponse|Protocol Error",
        gettext_noop("The server at this address is not Redis."),
        gettext_noop("Correct the host and the port in %(setting)s."),
    ),
    (
        r"CERTIFICATE_REQUIRED|certificate required|SSLEOFError",
        gettext_noop("Redis requires a client certificate."),
        gettext_noop("Add ?ssl_certfile=FILE&ssl_keyfile=FILE to %(setting)s."),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|CertificateError",
        gettext_noop("The TLS certificate of Redis could not be verified."),
        gettext_noop(
            "In %(setting)s, use the host name from the certificate and add the"
            " CA file: ?ssl_ca_certs=FILE"
        ),
    ),
    (
        r"handshake|SSLError|\[SSL",
        gettext_noop("Redis does not use TLS on this port."),
        gettext_noop("Start %(setting)s with redis://, or use the TLS port."),
    ),
    (
        r"gaierror|not known|name resolution|getaddrinfo",
        gettext_noop("The host name of Redis cannot be resolved."),
        gettext_noop("Correct the host in %(setting)s."),
    ),
    (
        r"ConnectionRefusedError|Connection refused",
        gettext_noop("Redis refused the connection."),
        gettext_noop("Start Redis, or correct the address in %(setting)s."),
    ),
    (
        r"FileNotFoundError|No such file",
        gettext_noop("A Redis socket or certificate file does not exist."),
        gettext_noop("Correct the path in %(setting)s, or start Redis."),
    ),
    (
        r"PermissionError|Permission denied",
        gettext_noop(
            "This process may not open the Redis socket or a certificate file."
        ),
        gettext_noop("Give its user read and write permission on the file."),
    ),
    (
        r"ConnectionResetError|BrokenPipeError|closed by server|reset by peer",
        gettext_noop("Redis closed the connection."),
        gettext_noop("If the port uses TLS, start %(setting)s with rediss://"),
    ),
    (
        r"No route to host|unreachable",
        gettext_noop("There is no network route to Redis."),
        gettext_noop("Correct the host in %(setting)s, or fix the network."),
    ),
    (
        r"TimeoutError|timed out",
        gettext_noop("Redis did not respond in time."),
        gettext_noop(
            "Check that the port in %(setting)s is open to this machine and that"
            " Redis is not overloaded."
        ),
    ),
)

_OTHER = (
    gettext_noop("Redis failed (%(error)s)."),
    gettext_noop("Start Redis, or correct the address in %(setting)s."),
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
                gettext_noop("CREDLY_REDIS_URL is not valid (%(error)s)."),
                gettext_noop("Correct the options after the question mark."),
                values,
            )

        return Trouble(
            gettext_noop("The function in CREDLY_QUEUE failed (%(error)s)."),
            gettext_noop("It must take the app and return an rq.Queue."),
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
