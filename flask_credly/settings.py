"""Reads ``CREDLY_*`` once."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import difflib
import json
import logging
import re
import typing as t
import urllib.parse

from flask import Flask

from .i18n import languages

if t.TYPE_CHECKING:
    import rq

logger = logging.getLogger("flask_credly")

QueueSetting = str | cabc.Callable[[Flask], "rq.Queue"]

_HOSTS = {
    False: ("https://api.credly.com/v1", "https://www.credly.com/oauth/token"),
    True: (
        "https://sandbox-api.credly.com/v1",
        "https://sandbox.credly.com/oauth/token",
    ),
}
_NONE = "None (in an environment variable: null)"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked values of the ``CREDLY_*`` keys."""

    api_url: str
    token_url: str
    redis_url: str = dataclasses.field(repr=False)
    """May hold a password."""
    queue: QueueSetting
    retry_delay: float
    timeout: float
    concurrency: int
    batch_size: int
    max_per_second: float | None
    url_prefix: str
    host: str | None
    layout: str
    platform_name: str
    log_days: int | None
    personal_data_days: int | None
    heal: bool
    health: bool
    language: str | None

    @property
    def is_sandbox(self) -> bool | None:
        """Whether the credentials go to Credly's sandbox. ``None``: to neither of
        Credly's own addresses.
        """
        return {own: is_sandbox for is_sandbox, (_, own) in _HOSTS.items()}.get(
            self.token_url
        )

    @classmethod
    def from_config(cls, config: cabc.Mapping[str, t.Any]) -> t.Self:
        """Read and check the configuration.

        :raises ValueError: If a value is wrong. The message names the key and says
            what to write.
        """
        sandbox = _switch(config, "CREDLY_SANDBOX", False)
        api_url, token_url = _HOSTS[sandbox]
        _check_keys(config.get("CREDLY_ENCRYPTION_KEYS"))
        return cls(
            api_url=_url(config, "CREDLY_API_URL", api_url),
            token_url=_url(config, "CREDLY_TOKEN_URL", token_url),
            redis_url=_redis_url(config),
            queue=_queue(config.get("CREDLY_QUEUE", "credly")),
            retry_delay=_number(config, "CREDLY_RETRY_DELAY", 60, 0, 86_400),
            timeout=_number(config, "CREDLY_TIMEOUT", 10, 0.1, 120),
            concurrency=_whole(config, "CREDLY_CONCURRENCY", 4, 64),
            batch_size=_whole(config, "CREDLY_BATCH_SIZE", 30, 50),
            max_per_second=_rate(config.get("CREDLY_MAX_PER_SECOND")),
            url_prefix=_prefix(config.get("CREDLY_URL_PREFIX", "/integrations")),
            host=_host(config.get("CREDLY_HOST")),
            layout=_layout(config.get("CREDLY_LAYOUT", "credly/base.html")),
            platform_name=_text(config, "CREDLY_PLATFORM_NAME", ""),
            log_days=_days(config, "CREDLY_LOG_DAYS", 90),
            personal_data_days=_days(config, "CREDLY_PERSONAL_DATA_DAYS", None),
            heal=_switch(config, "CREDLY_HEAL", True),
            health=_switch(config, "CREDLY_HEALTH", False),
            language=_language(config.get("CREDLY_LANGUAGE")),
        )


_KNOWN = {"SANDBOX", "ENCRYPTION_KEYS"} | {
    field.name.upper() for field in dataclasses.fields(Settings)
}


def unknown(config: cabc.Mapping[str, t.Any]) -> dict[str, str | None]:
    """Find the ``CREDLY_*`` that are no setting, each with what was likely meant."""
    given = {
        name.removeprefix("CREDLY_") for name in config if name.startswith("CREDLY_")
    }
    likely = {
        name: difflib.get_close_matches(name, _KNOWN, 1)
        for name in sorted(given - _KNOWN)
    }
    return {
        f"CREDLY_{name}": f"CREDLY_{meant[0]}" if meant else None
        for name, meant in likely.items()
    }


def warn_of_unknown(config: cabc.Mapping[str, t.Any]) -> None:
    """Warn where a setting is misspelt. Others may be the host's own."""
    for name, meant in unknown(config).items():
        if meant is not None:
            logger.warning(
                "Unknown setting %s. Use %s instead.",
                name,
                meant,
                extra={"credly_event": "setting_unknown", "credly_setting": name},
            )


def ignored(
    config: cabc.Mapping[str, t.Any], environ: cabc.Mapping[str, str]
) -> list[str]:
    """Find the environment variables that were meant as settings and are not in force:
    nobody has read them into the configuration, or it has another value.
    """
    found = []

    for name in sorted(environ):
        setting = name.removeprefix("FLASK_")
        short = setting.removeprefix("CREDLY_")

        # Others may be the host's own.
        if short == setting or not (
            short in _KNOWN or difflib.get_close_matches(short, _KNOWN, 1, 0.8)
        ):
            continue

        if setting not in config or not _means(environ[name], config[setting]):
            found.append(name)

    return found


def _means(text: str, value: t.Any) -> bool:
    """Whether a value may have been read from this text."""
    if encryption_keys_of(value) == encryption_keys_of(text):
        return True

    try:
        read = json.loads(text)
    except ValueError:
        read = text

    return read == value or text.strip().lower() == str(value).lower()


def encryption_keys_of(value: t.Any) -> list[str] | None:
    """Read it as :func:`encryption_keys`, if it can be."""
    if not isinstance(value, (str, bytes, list, tuple)):
        return None

    try:
        return encryption_keys(value)
    except AttributeError:
        return None


def warn_of_ignored(
    config: cabc.Mapping[str, t.Any], environ: cabc.Mapping[str, str]
) -> None:
    """Warn of environment variables that were meant as settings and are not in force.
    Names no value: it may be a key, or hold a password.
    """
    for name in ignored(config, environ):
        logger.warning(
            "The environment variable %s is not used. %s",
            name,
            HOW_TO_READ,
            extra={"credly_event": "setting_ignored", "credly_setting": name},
        )


HOW_TO_READ = (
    "Call app.config.from_prefixed_env() before credly.init_app(app) to read"
    " variables that begin with FLASK_CREDLY_."
)


def _wrong(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{key} must be {expected}, not {_shown(value)}.")


def _shown(value: object) -> str:
    """Write a wrong value, without a password: it may be an address that belongs into
    another setting.
    """
    if isinstance(value, str):
        return repr(re.sub(r"(?s).*@", "***@", value).partition("?")[0])

    plain = value is None or isinstance(value, (bool, int, float))
    return repr(value) if plain else type(value).__name__


def _switch(config: cabc.Mapping[str, t.Any], key: str, default: bool) -> bool:
    value = config.get(key, default)

    if not isinstance(value, bool):
        expected = "True or False (in an environment variable: true or false)"
        raise _wrong(key, value, expected)

    return value


def _text(config: cabc.Mapping[str, t.Any], key: str, default: str) -> str:
    value = config.get(key, default)

    if not isinstance(value, str):
        raise _wrong(key, value, "a string")

    return value.strip()


def _language(value: t.Any) -> str | None:
    if value is None:
        return None

    known = {name.lower(): name for name in languages()}
    wanted = value.strip().replace("-", "_").lower() if isinstance(value, str) else ""

    if wanted not in known:
        names = ", ".join(known.values())
        raise _wrong("CREDLY_LANGUAGE", value, f"one of {names}, or {_NONE}")

    return known[wanted]


def _split(url: str) -> urllib.parse.SplitResult:
    """Take an address apart. One that is none has no parts."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        return urllib.parse.urlsplit("")

    return parts


def _url(config: cabc.Mapping[str, t.Any], key: str, default: str) -> str:
    value = _text(config, key, default)
    parts = _split(value)

    # The secret travels over this connection: plain http only to this machine.
    secure = parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in _LOOPBACK
    )

    if not secure or not parts.hostname or parts.query or "@" in parts.netloc:
        raise _wrong(
            key,
            value,
            f"an https address such as {default!r} (http only on this machine)",
        )

    return value.rstrip("/")


def _redis_url(config: cabc.Mapping[str, t.Any]) -> str:
    key, default = "CREDLY_REDIS_URL", "redis://localhost:6379/0"
    value = _text(config, key, default)
    parts = _split(value)

    # Of a password that is not encoded, the rest is the path. redis-py would leave it
    # out in silence.
    number = parts.scheme == "unix" or re.fullmatch(r"\d*", parts.path.strip("/"))

    if parts.scheme not in ("redis", "rediss", "unix") or not number:
        # The value may hold a password.
        raise ValueError(
            f"{key} must be an address such as {default!r} that begins with"
            " redis://, rediss:// or unix://, and its port and its database numbers."
            " In a password, write %2F for /, %3F for ?, %23 for # and %40 for @."
        )

    return value


def _queue(value: t.Any) -> QueueSetting:
    if isinstance(value, str):
        ok = re.fullmatch(r"[A-Za-z0-9_.:-]+", value) is not None
    else:
        ok = callable(value)

    if not ok:
        raise _wrong(
            "CREDLY_QUEUE",
            value,
            "a queue's name, or a function that takes the app and returns an rq.Queue",
        )

    return t.cast(QueueSetting, value)


def _number(
    config: cabc.Mapping[str, t.Any], key: str, default: float, low: float, high: float
) -> float:
    value = config.get(key, default)

    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high
    ):
        raise _wrong(key, value, f"a number of seconds from {low} to {high}")

    return value


def _whole(config: cabc.Mapping[str, t.Any], key: str, default: int, most: int) -> int:
    value = config.get(key, default)

    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _wrong(key, value, f"a whole number from 1 to {most}")

    return value


def _rate(value: t.Any) -> float | None:
    if value is None:
        return None

    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0.01 <= value <= 1000
    ):
        expected = f"a number from 0.01 to 1000, or {_NONE}"
        raise _wrong("CREDLY_MAX_PER_SECOND", value, expected)

    return value


def _days(
    config: cabc.Mapping[str, t.Any], key: str, default: int | None
) -> int | None:
    value = config.get(key, default)

    if value is None:
        return None

    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 36500:
        expected = f"a whole number of days from 1 to 36500, or {_NONE}"
        raise _wrong(key, value, expected)

    return value


def _prefix(value: t.Any) -> str:
    # What a browser or a proxy would make another path of, or the routing a pattern.
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"""(/[^\s/\\<>?#%|"{}^`]+)+/?""", value)
        or not value.isprintable()
        or not {".", ".."}.isdisjoint(value.split("/"))
    ):
        raise _wrong(
            "CREDLY_URL_PREFIX",
            value,
            "a path such as '/integrations' or '/admin/badges', of letters, digits,"
            " hyphens and single slashes",
        )

    return value.rstrip("/")


def _host(value: t.Any) -> str | None:
    if value is not None and (
        not isinstance(value, str) or not re.fullmatch(r"[\w.-]+(:\d+)?", value)
    ):
        expected = f"a host such as 'admin.example.org', or {_NONE}"
        raise _wrong("CREDLY_HOST", value, expected)

    return value


def _layout(value: t.Any) -> str:
    # Jinja escapes by the file's ending.
    if not isinstance(value, str) or not value.endswith((".html", ".htm")):
        raise _wrong(
            "CREDLY_LAYOUT", value, "the name of a template that ends in '.html'"
        )

    return value


def encryption_keys(value: t.Any) -> list[str]:
    """Read ``CREDLY_ENCRYPTION_KEYS``: a list, or a string with commas. Bytes, as
    ``Fernet.generate_key()`` gives, are as good as strings.
    """
    if value is None:
        return []

    given = [value] if isinstance(value, (str, bytes)) else value
    texts = [
        each.decode(errors="replace") if isinstance(each, bytes) else each
        for each in given
    ]
    return [key.strip() for text in texts for key in text.split(",") if key.strip()]


def _check_keys(value: t.Any) -> None:
    wrong = ValueError(
        "CREDLY_ENCRYPTION_KEYS must be a list of keys, newest first, or a string of"
        " them with commas between, each made by"
        " cryptography.fernet.Fernet.generate_key().decode()."
    )

    if value is not None and not isinstance(value, (str, bytes, list, tuple)):
        raise wrong

    try:
        keys = encryption_keys(value)
    except AttributeError:
        raise wrong from None

    for key in keys:
        # 32 bytes in URL-safe base64. Checked without loading cryptography.
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}=", key):
            raise wrong

    if value is not None and not keys:
        raise wrong
