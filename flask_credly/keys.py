"""Seals secrets before they are stored.

The keys are ``CREDLY_ENCRYPTION_KEYS``, newest first: the first seals, all unseal.
Without them a key is derived from ``SECRET_KEY`` and, for reading, from each of
``SECRET_KEY_FALLBACKS``. They are read at each use, so that a key that changed is
noticed.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import json
import typing as t

from .errors import ConnectionExpired
from .secret import Secret
from .settings import encryption_keys

if t.TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

Config = cabc.Mapping[str, t.Any]


def can_seal(config: Config) -> bool:
    """Whether there is a key to seal with."""
    return bool(
        encryption_keys(config.get("CREDLY_ENCRYPTION_KEYS"))
        or config.get("SECRET_KEY")
    )


def seal(config: Config, value: str, *, context: str) -> str:
    """Encrypt a secret.

    :param context: What it is and whose. Sealed with it and compared at unsealing: a
        sealed value that was moved to another place does not open there.
    """
    # Not by way of a variable: a traceback may show it.
    return (
        _fernet(config)
        .encrypt(json.dumps({"context": context, "value": value}).encode())
        .decode()
    )


def unseal(config: Config, sealed: str, *, context: str) -> Secret:
    """Decrypt what :func:`seal` made.

    :raises ConnectionExpired: If no configured key opens it, or it belongs elsewhere.
        To the admin that is the same as expired credentials: enter them again.
    """
    from cryptography.fernet import InvalidToken

    try:
        plain = json.loads(_fernet(config).decrypt(sealed))
    except InvalidToken:
        plain = {}

    if plain.get("context") == context:
        return Secret(plain["value"])

    del plain  # A traceback may show it.
    raise ConnectionExpired(
        "The stored credentials cannot be decrypted with the configured keys."
    )


def _fernet(config: Config) -> MultiFernet:
    # Loaded here: most web requests never need it.
    from cryptography.fernet import Fernet
    from cryptography.fernet import MultiFernet

    keys = encryption_keys(config.get("CREDLY_ENCRYPTION_KEYS"))

    if not keys:
        secrets = [
            config.get("SECRET_KEY"),
            *(config.get("SECRET_KEY_FALLBACKS") or ()),
        ]
        keys = [_derive(secret) for secret in secrets if secret]

    if not keys:
        raise RuntimeError(
            "Flask-Credly needs CREDLY_ENCRYPTION_KEYS or SECRET_KEY to store the"
            " Client Secret."
        )

    return MultiFernet([Fernet(key) for key in keys])


def _derive(secret: str | bytes) -> str:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    material = secret.encode() if isinstance(secret, str) else secret
    kdf = HKDF(SHA256(), length=32, salt=None, info=b"flask-credly/v1")
    return base64.urlsafe_b64encode(kdf.derive(material)).decode()
