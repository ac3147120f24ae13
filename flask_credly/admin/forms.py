"""The forms, and the token that each of them carries."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import re
import typing as t
import uuid

import wtforms
from flask import current_app
from flask import request
from flask_wtf.csrf import CSRFError
from flask_wtf.csrf import generate_csrf
from flask_wtf.csrf import validate_csrf
from markupsafe import Markup
from wtforms import PasswordField
from wtforms import StringField
from wtforms import ValidationError
from wtforms.fields.core import UnboundField
from wtforms.validators import StopValidation

from ..catalog import clean
from ..i18n import gettext
from ..i18n import gettext_noop
from ..ledger import actions
from ..options import EACH
from ..options import LOCALES
from ..options import MEMBER
from ..options import MONTHS
from ..options import NEVER
from ..options import Options
from ..options import RENEW
from ..options import SILENT
from ..options import TELL
from ..secret import Secret
from .query import read_number

NO_DATE = gettext_noop("Enter a date, such as 2026-03-31.")
NOT_LISTED = gettext_noop("Choose an option from the list.")

LENGTH = 255
YES, NO = "yes", "no"


def _has_tokens() -> bool:
    # A host may have another protection than Flask-WTF's, and switch that off for its
    # own forms. Here only a test can.
    config = current_app.config
    return bool(config.get("WTF_CSRF_ENABLED", True)) or not current_app.testing


def _token_name() -> str:
    name: str = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    return name


def token() -> Markup:
    """Render the field that every form with ``method="post"`` needs."""
    if not _has_tokens():
        return Markup()

    field = Markup('<input type="hidden" name="{}" value="{}" />')
    return field.format(_token_name(), generate_csrf())


def check_token() -> None:
    """Check the token of this request. What the host protects, and how, makes no
    difference: the guard calls this for every view that is not only for reading.

    :raises CSRFError: It is outdated, missing or wrong.
    """
    if not _has_tokens():
        return

    names = current_app.config.get("WTF_CSRF_HEADERS", ("X-CSRFToken", "X-CSRF-Token"))
    given = (
        request.form.get(_token_name()),
        *(request.headers.get(name) for name in names),
    )

    try:
        validate_csrf(next(filter(None, given), None))
    except ValidationError as e:
        raise CSRFError(e.args[0]) from None


FIELD_NAMES: set[str] = set()
"""Which a host's token cannot have for its own."""


class Form(wtforms.Form):  # type: ignore[misc]
    """A form that reads its fields from a form, and from nothing else that a request
    may hold.
    """

    def __init_subclass__(cls) -> None:
        FIELD_NAMES.update(
            n for n, f in vars(cls).items() if isinstance(f, UnboundField)
        )

    @classmethod
    def sent(cls) -> t.Self:
        """Read what was sent."""
        return cls(request.form)


def _strip(value: str | None) -> str:
    return (value or "").strip()


def _text(value: str | None) -> str:
    return clean(value, LENGTH)


def _passage(value: str | None) -> str:
    # As it was typed, also where it is too long.
    return clean(value, 10_000)


def _label(field: t.Any) -> str:
    return gettext(field.label.text)


Check = cabc.Callable[[t.Any, t.Any], None]


def _filled(message: str) -> Check:
    """Check that a field is not empty.

    :param message: What is said of one that is; the label may stand in it.
    """

    def check(form: Form, field: t.Any) -> None:
        if not field.data:
            raise StopValidation(gettext(message, label=_label(field)))

    return check


def _one_of(*values: str, message: str = NOT_LISTED) -> Check:
    """Check that a field has one of these values."""

    def check(form: Form, field: t.Any) -> None:
        if field.data not in values:
            raise StopValidation(gettext(message))

    return check


_REQUIRED = _filled(gettext_noop("Enter your %(label)s."))
_FIRST_NAME = _filled(gettext_noop("Enter a first name."))
_LAST_NAME = _filled(gettext_noop("Enter a last name."))
_TEMPLATE = _filled(gettext_noop("Select a badge template."))
_TELL = _one_of(
    YES, NO, message=gettext_noop("Choose whether Credly notifies the member.")
)
_TELL_PENDING = _one_of(
    YES,
    NO,
    message=gettext_noop(
        "Choose whether Credly notifies members who have not accepted the badge."
    ),
)
_TELL_ACCEPTED = _one_of(
    YES,
    NO,
    message=gettext_noop(
        "Choose whether Credly notifies members who have accepted the badge."
    ),
)


def _plain(form: Form, field: t.Any) -> None:
    value = field.data

    if len(value) > LENGTH:
        raise ValidationError(
            gettext("The %(label)s is too long.", label=_label(field))
        )

    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValidationError(
            gettext(
                "The %(label)s contains invalid characters. Copy it from Credly"
                " again, without spaces.",
                label=_label(field),
            )
        )


class ConnectForm(Form):
    """The account at Credly."""

    organization_id = StringField(
        gettext_noop("Organization ID"), [_REQUIRED], filters=[_strip]
    )
    client_id = StringField(
        gettext_noop("Client ID"), [_REQUIRED, _plain], filters=[_strip]
    )
    # Hidden from here on, also in the traceback of whatever goes wrong.
    client_secret = PasswordField(
        gettext_noop("Client Secret"), [_REQUIRED, _plain], filters=[_strip, Secret]
    )

    def validate_organization_id(self, field: t.Any) -> None:
        try:
            found = str(uuid.UUID(field.data))
        except ValueError:
            found = ""

        if found != field.data.lower():
            raise ValidationError(
                gettext(
                    "Enter a valid Organization ID: 36 letters, digits and"
                    " hyphens. Copy it from Credly."
                )
            )


class PersonForm(Form):
    """Who gets a badge."""

    email = StringField(gettext_noop("E-mail address"), filters=[_strip])
    first_name = StringField(gettext_noop("First name"), [_FIRST_NAME], filters=[_text])
    last_name = StringField(gettext_noop("Last name"), [_LAST_NAME], filters=[_text])

    def validate_email(self, field: t.Any) -> None:
        if (
            not re.fullmatch(r"[^@\s]+@[^@\s]+", field.data)
            or not field.data.isprintable()
            or len(field.data) > LENGTH
        ):
            raise ValidationError(
                gettext("Enter an e-mail address, such as name@example.org.")
            )


class RevokeForm(Form):
    """Why a badge is revoked, and whether its member is told."""

    reason = StringField(gettext_noop("Reason"), filters=[_passage])
    tell = StringField(validators=[_TELL], filters=[_strip])

    def validate_reason(self, field: t.Any) -> None:
        problem = actions.problem_with(field.data)
        least, most = actions.REASON_LENGTH

        if problem == "short":
            raise ValidationError(
                gettext(
                    "Enter a reason of at least %(number)s characters.", number=least
                )
            )

        if problem == "long":
            raise ValidationError(
                gettext(
                    "Shorten the reason to %(number)s characters. It has %(length)s.",
                    length=len(field.data),
                    number=most,
                )
            )

        if problem == "address":
            raise ValidationError(
                gettext(
                    "Remove the e-mail address from the reason. Members may read it."
                )
            )


def _read_count(typed: str | None) -> int | None:
    """Read a number, however a reader groups its digits."""
    return read_number(re.sub(r"[\s.,'’]", "", typed or ""))


class UndoForm(RevokeForm):
    """Why many badges are taken back, whose members are told, and how many they are."""

    tell = None
    tell_pending = StringField(validators=[_TELL_PENDING], filters=[_strip])
    tell_accepted = StringField(validators=[_TELL_ACCEPTED], filters=[_strip])
    number = StringField(gettext_noop("Number of badges"), filters=[_strip])
    shown = StringField()
    """How many the page has said there are."""
    last = StringField()
    """The last row that there was then."""

    @property
    def count(self) -> int | None:
        """How many were typed."""
        return _read_count(self.number.data)

    def validate_number(self, field: t.Any) -> None:
        if self.count is None or self.count != read_number(self.shown.data or ""):
            raise ValidationError(gettext("Type the number of badges to revoke."))


class AgainForm(PersonForm, RevokeForm):
    """To whom a badge is issued again, and why the one in force is revoked."""

    @classmethod
    def sent_with(cls, *, in_force: bool) -> t.Self:
        """Read what was sent.

        :param in_force: Whether there is a badge to revoke.
        """
        form = cls.sent()

        if not in_force:
            del form.reason, form.tell

        return form


class WithdrawnForm(Form):
    """What becomes of many badges whose completions were withdrawn."""

    number = StringField(gettext_noop("Number of badges"), filters=[_strip])
    shown = StringField(filters=[_strip])
    """How many the page has said there are."""
    decision = StringField(validators=[_one_of("revoke", "keep")])
    """``"revoke"`` or ``"keep"``."""

    def validate_number(self, field: t.Any) -> None:
        shown = read_number(self.shown.data or "")

        if self.decision.data == "revoke" and (
            shown is None or _read_count(field.data) != shown
        ):
            raise ValidationError(gettext("Type the number of badges to revoke."))


class CompareForm(Form):
    """What a comparison leaves out."""

    since = StringField(gettext_noop("Only completions since"), filters=[_strip])

    @property
    def time(self) -> dt.datetime | None:
        """The first moment of the day that was typed."""
        if not self.since.data:
            return None

        day = dt.date.fromisoformat(self.since.data)
        return dt.datetime.combine(day, dt.time(), dt.UTC)

    def validate_since(self, field: t.Any) -> None:
        try:
            _ = self.time
        except ValueError:
            raise ValidationError(gettext(NO_DATE)) from None


class RepairForm(Form):
    """How many differences are repaired."""

    number = StringField(gettext_noop("Number of badges"), filters=[_strip])
    run = StringField(filters=[_strip])
    """The comparison that the page has shown."""
    shown = StringField(filters=[_strip])
    """How many the page has said there are."""

    def validate_number(self, field: t.Any) -> None:
        shown = read_number(self.shown.data or "")

        if shown is None or _read_count(field.data) != shown:
            raise ValidationError(gettext("Type the number of badges to repair."))


class CorrectForm(Form):
    """What stands on a badge."""

    first_name = StringField(gettext_noop("First name"), [_FIRST_NAME], filters=[_text])
    last_name = StringField(gettext_noop("Last name"), [_LAST_NAME], filters=[_text])
    completed = StringField(gettext_noop("Date of completion"), filters=[_strip])
    template = StringField(
        gettext_noop("Credly badge template"), [_TEMPLATE], filters=[_text]
    )
    template_text = StringField(filters=[_text])
    search = StringField()
    """Whether the templates are searched, by its button."""
    step = StringField()
    """``"confirm"``: what was shown is done. ``"edit"``: it is not meant."""

    def validate_completed(self, field: t.Any) -> None:
        try:
            day = dt.date.fromisoformat(field.data)
        except ValueError:
            raise ValidationError(gettext(NO_DATE)) from None

        if not dt.date(1970, 1, 1) <= day <= dt.datetime.now(dt.UTC).date():
            raise ValidationError(
                gettext("Enter a date from 1970 on that is not in the future.")
            )


class MappingForm(Form):
    """A course or learning path, and a badge template."""

    course = StringField(
        gettext_noop("Course or learning path"),
        [_filled(gettext_noop("Select a course or learning path."))],
        filters=[_strip],
    )
    template = StringField(
        gettext_noop("Credly badge template"), [_TEMPLATE], filters=[_text]
    )
    undo = StringField()
    key = StringField()
    """Keeps the ids of an open row the same when it is shown again."""
    search = StringField()
    """Which of the two lists is searched, where the form is sent for that."""
    course_text = StringField(filters=[_text])
    template_text = StringField(filters=[_text])


class OptionsForm(Form):
    """The options of a mapping."""

    locale = StringField(validators=[_one_of("", MEMBER, *LOCALES)], filters=[_strip])
    mail = StringField(validators=[_one_of("", "off")], filters=[_strip])
    expires = StringField(validators=[_one_of("", NEVER, "months")], filters=[_strip])
    months = StringField(gettext_noop("Number of months"), filters=[_strip])
    evidence = StringField(validators=[_one_of("", "on")], filters=[_strip])
    group = StringField(gettext_noop("Group tag"), filters=[_strip])
    again = StringField(validators=[_one_of("", RENEW, EACH)], filters=[_strip])
    withdrawn = StringField(validators=[_one_of("", TELL, SILENT)], filters=[_strip])
    may_repeat = False
    """Whether a further completion may give a badge more."""
    preview = StringField()
    """Whether the form is sent for what it would come to."""

    @classmethod
    def of(cls, options: Options) -> t.Self:
        """Show options."""
        in_months = isinstance(options.expires, int)
        return cls(
            data={
                "locale": options.locale,
                "mail": "" if options.mail else "off",
                "expires": "months" if in_months else options.expires,
                "months": str(options.expires) if in_months else "",
                "evidence": "on" if options.evidence else "",
                "group": options.group,
                "again": options.again,
                "withdrawn": options.withdrawn,
            }
        )

    def options(self) -> Options:
        """Get what was chosen, once it is valid."""
        expires = self.expires.data
        return Options(
            locale=self.locale.data,
            mail=self.mail.data != "off",
            expires=int(self.months.data) if expires == "months" else expires,
            evidence=self.evidence.data == "on",
            group=clean(self.group.data, LENGTH),
            again=self.again.data,
            withdrawn=self.withdrawn.data,
        )

    def validate_months(self, field: t.Any) -> None:
        if self.expires.data != "months":
            return

        # As many digits as it has: more of them Python would refuse to read.
        if not re.fullmatch(r"[0-9]{1,4}", field.data) or int(field.data) not in MONTHS:
            raise ValidationError(
                gettext(
                    "Enter a number of months from %(first)s to %(last)s.",
                    first=MONTHS[0],
                    last=MONTHS[-1],
                )
            )

    def validate_again(self, field: t.Any) -> None:
        if field.data == EACH and not self.may_repeat:
            raise ValidationError(
                gettext(
                    "Credly issues this badge template only once per member."
                    " Allow duplicates for it in Credly, then refresh the"
                    " templates here."
                )
            )

    def validate_group(self, field: t.Any) -> None:
        if len(field.data) > LENGTH:
            raise ValidationError(
                gettext(
                    "Shorten the group tag to %(number)s characters.",
                    number=LENGTH,
                )
            )
