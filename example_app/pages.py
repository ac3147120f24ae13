"""The platform's pages, and one that shows what the simulator received."""

from __future__ import annotations

import typing as t
import urllib.parse
import zlib

import requests
from flask import abort
from flask import Blueprint
from flask import current_app
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import Response
from flask import session
from flask import url_for
from flask.typing import ResponseReturnValue
from flask_wtf import FlaskForm

from . import models
from .badges import complete
from .badges import current_community
from .badges import current_person
from .badges import withdraw
from .models import db

pages = Blueprint("pages", __name__)

FAULTS: dict[str, tuple[str, str, dict[str, t.Any]]] = {
    "error": (
        "Fail the next request",
        "fail",
        {"kind": "issue", "status": 500},
    ),
    "twice": (
        "Refuse the next two requests",
        "fail",
        {
            "kind": "issue",
            "times": 2,
            "status": 422,
            "body": {"data": {"message": "Example refusal"}, "metadata": None},
        },
    ),
    "lost": (
        "Issue the next badge, but lose the answer",
        "fail",
        {"kind": "issue", "how": "reset", "after": True},
    ),
    "limit": (
        "Answer “too many requests” once",
        "fail",
        {"kind": "issue", "status": 429, "headers": {"Retry-After": "15"}},
    ),
    "revoke": ("Revoke the credentials", "revoke", {}),
    "restore": ("Restore the credentials", "restore", {}),
    "outage": (
        "Outage",
        "fail",
        {"kind": "*", "times": None, "status": 503},
    ),
    "few": (
        "Fail one request in a hundred",
        "fail",
        {"kind": "*", "share": 0.01, "status": 500},
    ),
    "clear": ("Back to normal", "clear", {}),
}

AT_MOST = 20
"""Badges that the simulator's page shows at a time."""

PICTURES = "https://images.credly.com/"

ACTS = {"accept": "Accept", "reject": "Decline", "revoke-badge": "Revoke"}
STATES = {"archived": "Archive", "active": "Restore"}


class TokenForm(FlaskForm):  # type: ignore[misc]
    """A form without fields but its token."""


@pages.app_context_processor
def add_person() -> dict[str, t.Any]:
    return {
        "person": current_person(),
        "people": _people(),
        "community": (community := current_community()),
        "site_name": models.NAMES[community or models.DEFAULT],
        "token_form": TokenForm(),
    }


@pages.before_request
def check_form() -> None:
    if request.method == "POST" and not TokenForm().validate():
        abort(400, "The form has expired. Go back and reload the page.")


@pages.get("/")
def index() -> str:
    if (community := current_community()) is None:
        return render_template("example/welcome.html")

    person = current_person()
    done: set[str] = set()

    if person is not None:
        enrolments = db.session.query(models.Enrolment).filter_by(person_id=person.id)
        done = {each.course_id for each in enrolments if each.completed_at}

    courses = (
        db.session.query(models.Course)
        .filter_by(community=community)
        .order_by(models.Course.kind, "title")
    )
    return render_template("example/index.html", courses=courses.all(), done=done)


@pages.get("/me")
def me() -> str:
    """Show the badges of whoever has logged in, and of nobody else."""
    person = current_person()

    if person is None or person.community is None:
        abort(403)

    return render_template("example/me.html")


@pages.get("/members")
def members() -> str:
    """Show the profiles that the visitor may change: all to an admin."""
    return render_template("example/members.html", members=_changeable())


@pages.post("/members/<int:person_id>")
def change_profile(person_id: int) -> ResponseReturnValue:
    """Save a member's names. A badge that is retried has those of now."""
    found = [each for each in _changeable() if each.id == person_id]

    if not found:
        abort(403)

    (member,) = found
    member.first_name = request.form["first_name"].strip()
    member.last_name = request.form["last_name"].strip()
    db.session.commit()
    flash(f"Saved: {member.first_name} {member.last_name}.")
    return redirect(url_for(".members"), 303)


@pages.post("/be/<int:person_id>")
def be(person_id: int) -> ResponseReturnValue:
    session["person_id"] = db.get_or_404(models.Person, person_id).id
    return redirect(url_for(".index"), 303)


def member_and_course(course_id: str) -> tuple[models.Person, models.Course]:
    """Get the member who is here, and a course of the member's community."""
    if (person := current_person()) is None or person.community is None:
        abort(403)

    return person, db.get_or_404(models.Course, (person.community, course_id))


@pages.post("/complete/<course_id>")
def complete_course(course_id: str) -> ResponseReturnValue:
    person, course = member_and_course(course_id)
    complete(person, course)
    flash(f"{person.first_name} completed {course.title}.")
    return redirect(url_for(".index"), 303)


@pages.post("/withdraw/<course_id>")
def withdraw_completion(course_id: str) -> ResponseReturnValue:
    person, course = member_and_course(course_id)
    withdraw(person, course)
    flash(f"{person.first_name}’s completion of {course.title} was withdrawn.")
    return redirect(url_for(".index"), 303)


@pages.after_app_request
def keep_pictures_here(response: Response) -> Response:
    """Show the simulator's pictures from here: they have addresses of Credly's, where
    there are none.
    """
    if response.mimetype == "text/html" and not response.direct_passthrough:
        text = response.get_data(as_text=True)
        response.set_data(text.replace(PICTURES, url_for("pages.index") + "pictures/"))

    return response


@pages.get("/pictures/<template_id>.png")
def picture(template_id: str) -> Response:
    """Draw a badge that nobody takes for a real one."""
    hue = zlib.crc32(template_id.encode()) % 360
    svg = render_template("example/picture.svg", hue=hue)
    return Response(svg, mimetype="image/svg+xml")


@pages.get("/simulator")
def simulator() -> str:
    record = _ask("GET", "record", params={"organization_id": _organization()})
    wanted = request.args.get("email", "").strip()
    badges = [
        each
        for each in reversed(record["badges"])
        if wanted.lower() in each["recipient_email"].lower()
    ]
    return render_template(
        "example/simulator.html",
        record=record,
        wanted=wanted,
        badges=badges[:AT_MOST],
        number=len(badges),
        misbehaves=_misbehaviour(record),
        acts=ACTS,
        faults=FAULTS,
        states=STATES,
    )


@pages.post("/simulator/badges/<badge_id>/<act>")
def act_on_badge(badge_id: str, act: str) -> ResponseReturnValue:
    """Do what an earner or an issuer does at Credly."""
    if act not in ACTS:
        abort(404)

    arguments = {"organization_id": _organization(), "badge_id": badge_id}
    error = _ask("POST", act, json=arguments).get("error")
    flash(error or f"Done: {ACTS[act]}.")
    return redirect(url_for(".simulator"), 303)


@pages.post("/simulator/templates/<template_id>/<state>")
def change_template(template_id: str, state: str) -> ResponseReturnValue:
    """Do what an issuer does to a badge template at Credly."""
    if state not in STATES:
        abort(404)

    given = {"organization_id": _organization(), "id": template_id, "state": state}
    error = _ask("POST", "change-template", json=given).get("error")
    flash(error or f"Done: {STATES[state]}.")
    return redirect(url_for(".simulator"), 303)


@pages.post("/simulator/<fault>")
def switch(fault: str) -> ResponseReturnValue:
    if fault not in FAULTS:
        abort(404)

    label, path, arguments = FAULTS[fault]
    _ask("POST", path, json={"organization_id": _organization(), **arguments})
    flash(f"Done: {label}.")
    return redirect(url_for(".simulator"), 303)


def _changeable() -> list[models.Person]:
    person = current_person()

    if person is None or person.community is None or person.is_viewer:
        abort(403)

    members = db.session.query(models.Person).filter_by(
        community=person.community, role="member", is_listed=True
    )
    return [each for each in members if person.is_admin or each.id == person.id]


def _people() -> dict[str, list[models.Person]]:
    """Get all people, by what stands above them."""
    found: dict[str, list[models.Person]] = {}

    for person in db.session.query(models.Person).filter_by(is_listed=True):
        name = models.NAMES[person.community] if person.community else "The platform"
        found.setdefault(name, []).append(person)

    return found


def _misbehaviour(record: dict[str, t.Any]) -> list[str]:
    """Name what the simulator does wrong now, by the buttons that began it."""
    found = [] if record["has_client"] else [FAULTS["revoke"][0]]

    for fault in record["faults"]:
        for label, path, given in FAULTS.values():
            # Of what strikes a few times, less may be left. A body is not told.
            told = {each for each in given if each in fault} - {"times"}

            if path == "fail" and all(fault[each] == given[each] for each in told):
                found.append(label)

    return found


def _organization() -> str:
    """Get the id of the community's organization at the simulator."""
    if (community := current_community()) is None:
        abort(404)

    organizations = _ask("GET", "record")["organizations"]
    number = models.communities().index(community)
    return str(organizations[number]["organization_id"])


def _ask(method: str, path: str, **arguments: t.Any) -> t.Any:
    address = urllib.parse.urljoin(
        current_app.config["CREDLY_API_URL"], f"/_simulator/{path}"
    )

    try:
        return requests.request(method, address, timeout=5, **arguments).json()
    except (requests.RequestException, ValueError):
        abort(503, "The simulator does not answer.")
