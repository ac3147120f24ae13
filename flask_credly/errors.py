"""What can go wrong with Credly, told apart by what to do next."""

from __future__ import annotations


class CredlyError(Exception):
    """Base of all errors of a call to Credly.

    As text, it is fit for a log: of an answer it gives the status only. What the answer
    says may repeat what was sent, in whatever spelling.

    :param detail: A sentence for the admin. Holds neither secret nor token.
    :param status: HTTP status of the answer, if there was one.
    :param foreign: Whether something in Credly's place seems to have answered: a proxy,
        a firewall, the login page of a network.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, foreign: bool = False
    ) -> None:
        super().__init__(detail if status is None else f"HTTP {status} from Credly.")
        self.detail = detail
        self.status = status
        self.foreign = foreign


class Refused(CredlyError):
    """Credly understood the request and did not do what it asks.

    :param index: Because of which of several badges, from 0, where it says so.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, index: int | None = None
    ) -> None:
        super().__init__(detail, status=status)
        self.index = index


class AlreadyHeld(Refused):
    """Refused because the member holds this badge already."""


class OutcomeUnknown(CredlyError):
    """The request went out, and no usable answer came back: a time-out, a broken
    connection, a 5xx, or a success that cannot be read.
    """


class TooLate(CredlyError):
    """The request was not sent: its time was over before the connection was there."""

    def __init__(self) -> None:
        super().__init__("The request was not sent in time.")


class Unavailable(CredlyError):
    """Nothing was processed: Credly could not be connected to, or is in trouble.
    Neither an attempt nor a verdict on the credentials.

    :param retry_after: Seconds to wait at least, where Credly says so.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        foreign: bool = False,
        retry_after: float = 0,
    ) -> None:
        super().__init__(detail, status=status, foreign=foreign)
        self.retry_after = retry_after


class InTrouble(OutcomeUnknown):
    """Credly answered 503 to a request that it may have processed all the same. Not an
    attempt, but to be looked up.

    :param retry_after: Seconds to wait at least, where Credly says so.
    """

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail, status=503)
        self.retry_after = retry_after


class RateLimited(CredlyError):
    """Credly answered 429. Nothing was processed.

    :param retry_after: Seconds to wait, 1 to 3600.
    """

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail, status=429)
        self.retry_after = retry_after


class Unauthorized(CredlyError):
    """The API did not accept the access token."""


class ConnectionExpired(CredlyError):
    """The stored credentials are no longer good: the token endpoint refused them, or
    the API refused a fresh token.
    """


class SecretUnreadable(CredlyError):
    """What is stored cannot be decrypted with the keys of this process. Credly was not
    asked.
    """

    def __init__(self) -> None:
        super().__init__(
            "The stored Client Secret cannot be decrypted with the configured"
            " keys. Run flask credly doctor to see which setting to correct."
        )
