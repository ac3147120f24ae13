"""Seals secrets before they are stored.

The keys are ``CREDLY_ENCRYPTION_KEYS``, newest first: the first seals, all unseal.
After them come the keys derived from ``SECRET_KEY`` and from each of
``SECRET_KEY_FALLBACKS``: one of these seals where no other is set, and goes on to
unseal when the setting is added. They are read at each use, so that a key that changed
is noticed.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import json
import logging
import typing as t

from .errors import SecretUnreadable
from .secret import Secret
from .settings import encryption_keys

if t.TYPE_CHECKING:
    from cryptography.fernet import Fernet

logger = logging.getLogger("flask_credly")

MAKE_A_KEY = (
    'python -c "from cryptography.fernet import Fernet;'
    ' print(Fernet.generate_key().decode())"'
)
"""The command that makes one."""

SHORT = 16
"""Bytes of a ``SECRET_KEY`` below which it can be tried out."""

_GUESSED = ("changeme", "change-me", "change_me", "change me", "secret", "password")

Config = cabc.Mapping[str, t.Any]


def can_seal(config: Config) -> bool:
    """Whether there is a key to seal with."""
    return not is_derived(config) or bool(config.get("SECRET_KEY"))


def is_derived(config: Config) -> bool:
    """Whether the key that seals is derived from ``SECRET_KEY``."""
    return not encryption_keys(config.get("CREDLY_ENCRYPTION_KEYS"))


def remedy(config: Config) -> str:
    """Say which setting of this process to correct where nothing is unsealed."""
    if is_derived(config):
        return (
            "SECRET_KEY may have changed, or CREDLY_ENCRYPTION_KEYS may be"
            " missing. Restore it, or add the previous SECRET_KEY to"
            " SECRET_KEY_FALLBACKS."
        )

    return (
        "Add the missing key to the end of CREDLY_ENCRYPTION_KEYS. If none was"
        " set at the time, add the SECRET_KEY of that time to"
        " SECRET_KEY_FALLBACKS."
    )


def is_weak(config: Config) -> bool:
    """Whether the key that seals is derived from a ``SECRET_KEY`` that can be guessed:
    whoever reads the database could then decrypt the Client Secret.
    """
    if not is_derived(config) or not (secret := config.get("SECRET_KEY")):
        return False

    material = secret.encode() if isinstance(secret, str) else bytes(secret)
    text = material.decode(errors="replace").lower()
    return (
        len(material) < SHORT
        or len(set(material)) < SHORT // 2
        or any(word in text for word in _GUESSED)
    )


WEAK = (
    "SECRET_KEY is weak, and the key that encrypts the Client Secret is derived"
    " from it."
)


def warn_of_derived(config: Config) -> None:
    """Warn where the key is derived. For the start of what runs for long."""
    if is_derived(config):
        logger.warning(
            "CREDLY_ENCRYPTION_KEYS is not set. The Client Secret is encrypted"
            " with a key derived from SECRET_KEY. If SECRET_KEY changes without"
            " SECRET_KEY_FALLBACKS, the Client Secret must be entered again.%s",
            f" {WEAK}" if is_weak(config) else "",
        )


def _context_of(organization_id: str, field: str) -> str:
    return f"credly_account/{organization_id}/{field}"


def seal(config: Config, value: str, organization_id: str, field: str) -> str:
    """Encrypt a secret.

    :param organization_id: Whose it is. Sealed with it and compared at unsealing, as
        the next: a sealed value that was moved to another place does not open there.
    :param field: The column of the connection that it is for.
    :raises RuntimeError: If there is no key: see :func:`can_seal`.
    """
    if not can_seal(config):
        raise RuntimeError(
            "Flask-Credly needs CREDLY_ENCRYPTION_KEYS or SECRET_KEY to store the"
            " Client Secret."
        )

    # Not by way of a variable: a traceback may show it.
    return (
        _fernets(config)[0]
        .encrypt(
            json.dumps(
                {"context": _context_of(organization_id, field), "value": value}
            ).encode()
        )
        .decode()
    )


def unseal(config: Config, sealed: str, organization_id: str, field: str) -> Secret:
    """Decrypt what :func:`seal` made.

    :raises SecretUnreadable: If no configured key opens it, or it belongs elsewhere.
    """
    from cryptography.fernet import InvalidToken
    from cryptography.fernet import MultiFernet

    try:
        plain = json.loads(MultiFernet(_fernets(config)).decrypt(sealed))
    except (InvalidToken, ValueError):  # the latter where there is no key at all
        plain = {}

    if plain.get("context") == _context_of(organization_id, field):
        return Secret(plain["value"])

    del plain  # A traceback may show it.
    raise SecretUnreadable from None


def opens(config: Config, sealed: str, organization_id: str, field: str) -> bool:
    """Whether :func:`unseal` would succeed."""
    try:
        unseal(config, sealed, organization_id, field)
    except SecretUnreadable:
        return False

    return True


def is_current(config: Config, sealed: str) -> bool:
    """Whether it was sealed with the key that seals now."""
    from cryptography.fernet import InvalidToken

    try:
        _fernets(config)[0].decrypt(sealed)
    except (InvalidToken, IndexError):  # the latter where there is no key at all
        return False

    return True


def _fernets(config: Config) -> list[Fernet]:
    """Get all keys, the one that seals first."""
    # Loaded here: most web requests never need it.
    from cryptography.fernet import Fernet

    secrets = [config.get("SECRET_KEY"), *(config.get("SECRET_KEY_FALLBACKS") or ())]
    return [
        Fernet(key)
        for key in (
            *encryption_keys(config.get("CREDLY_ENCRYPTION_KEYS")),
            *(_derive(secret) for secret in secrets if secret),
        )
    ]


def _derive(secret: str | bytes) -> str:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    material = secret.encode() if isinstance(secret, str) else secret
    kdf = HKDF(SHA256(), length=32, salt=None, info=b"flask-credly/v1")
    return base64.urlsafe_b64encode(kdf.derive(material)).decode()
