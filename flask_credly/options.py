"""How a mapping's badges are issued, where that is not as Credly does by itself."""

from __future__ import annotations

import calendar
import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

LOCALES: dict[str, str] = {
    "en": "English",
    "fr": "français",
    "de": "Deutsch",
    "ko": "한국어",
    "ja": "日本語",
    "zh-CN": "简体中文",
    "pt": "português",
    "es-ES": "español (España)",
    "es-US": "español (Estados Unidos)",
    "fr-CA": "français (Canada)",
    "pt-BR": "português (Brasil)",
}
"""The languages in which Credly writes, by their codes there, each as its readers call
it. The first of a language is what its other variants become.
"""

MEMBER = "member"
"""In place of a language: the member's own."""

NEVER = "never"
"""In place of a number of months."""

MONTHS = range(1, 601)

RENEW = "renew"
"""A further completion replaces the badge."""

EACH = "each"
"""A further completion gives a badge more."""

TELL = "tell"
"""The badge of a withdrawn completion is revoked, and Credly tells the member."""

SILENT = "silent"
"""It is revoked, and Credly does not tell the member."""

GAPS = {RENEW: dt.timedelta(days=30), EACH: dt.timedelta(days=1)}
"""How much later than the last one a completion is at least, to be a further one."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a mapping.

    :param locale: The language of Credly's mail: a code of :data:`LOCALES`, or
        :data:`MEMBER`. Empty: Credly's default.
    :param mail: Whether Credly writes to the member.
    :param expires: In how many months after the completion, one of :data:`MONTHS`, or
        :data:`NEVER`. Empty: as the badge template says.
    :param evidence: Whether the evidence is sent that comes with a completion.
    :param group: Credly's group tag, of 255 characters at most. Empty: none.
    :param again: What a further completion of the same member does: :data:`RENEW` or
        :data:`EACH`. Empty: nothing.
    :param withdrawn: What becomes of the badge when the completion is withdrawn:
        :data:`TELL` or :data:`SILENT`. Empty: it stays.
    """

    locale: str = ""
    mail: bool = True
    expires: str | int = ""
    evidence: bool = False
    group: str = ""
    again: str = ""
    withdrawn: str = ""

    @classmethod
    def read(cls, stored: cabc.Mapping[str, t.Any] | None) -> Options:
        """Read what :meth:`stored` has written, also in another version."""
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in (stored or {}).items() if k in known})

    def stored(self) -> dict[str, t.Any] | None:
        """Write down what is not as Credly does by itself. ``None``: all is."""
        usual = Options()
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value != getattr(usual, name)
        } or None

    def locale_for(self, wanted: str | None) -> str | None:
        """Get the language for a member. ``None``: Credly's default.

        :param wanted: The member's own, as the host names it.
        """
        if self.locale == MEMBER:
            return find_locale(wanted) if wanted else None

        return self.locale or None

    def expires_at(
        self, completed_at: dt.datetime
    ) -> dt.datetime | t.Literal[False] | None:
        """Say until when a badge holds: to the end of a day, in UTC. ``False``: for
        ever. ``None``: as the badge template says.

        :param completed_at: When the course was completed, aware.
        """
        if self.expires == NEVER:
            return False

        if not isinstance(self.expires, int):
            return None

        day = add_months(completed_at.astimezone(dt.UTC).date(), self.expires)
        return dt.datetime.combine(day, dt.time(23, 59, 59), dt.UTC)


def add_months(day: dt.date, months: int) -> dt.date:
    """Get the same day of a later month, or the last one of a month that is too short:
    31 January and one month is 28 or 29 February.
    """
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return dt.date(year, month + 1, min(day.day, last))


def find_locale(wanted: str) -> str | None:
    """Find the language of :data:`LOCALES` that is nearest to another: the same, or the
    first of the same language. ``None``: there is none.
    """
    wanted = wanted.strip().replace("_", "-").casefold()
    by_code = {code.casefold(): code for code in LOCALES}

    if wanted in by_code:
        return by_code[wanted]

    language = wanted.partition("-")[0]
    return next(
        (code for known, code in by_code.items() if known.split("-")[0] == language),
        None,
    )
