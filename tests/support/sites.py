"""A host of several communities, for the tests that need one."""

from __future__ import annotations

import collections.abc as cabc
import contextvars
import dataclasses
import re
import typing as t

from conftest import a_member
from conftest import COURSES
from conftest import Host
from conftest import MakeHost
from flask import request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly import course_completed
from flask_credly import Member
from flask_credly.models import Issuance
from flask_credly.state import AppState
from flask_credly.state import Community
from flask_credly.testing import CredlySimulator
from flask_credly.testing.organization import Organization

HEADER = "X-Community"
"""By which a request says to the host where it is."""

PREFIX = "/integrations"


def by_header() -> str | None:
    return request.headers.get(HEADER)


@dataclasses.dataclass
class Site:
    """A host of several communities, and what a test does with it.

    :param at: The organization of each.
    :param templates: The badge template that "Python 101" is mapped to, in each.
    """

    host: Host
    credly: CredlySimulator
    at: dict[str, Organization] = dataclasses.field(default_factory=dict)
    templates: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def app_state(self) -> AppState:
        state: AppState = self.host.app.extensions["credly"]
        return state

    def of(self, tenant: str) -> Community:
        return self.app_state.of(tenant)

    def connect(
        self, tenant: str, organization: Organization | None = None, **template: t.Any
    ) -> Organization:
        """Connect a community and map "Python 101"."""
        if organization is None:
            organization = self.credly.add_organization()

        template_id = organization.add_template(f"Badge of {tenant}", **template)
        accounts.connect(
            self.of(tenant),
            organization_id=organization.organization_id,
            client_id=organization.client_id,
            client_secret=organization.client_secret,
        )
        accounts.add_mapping(self.of(tenant), COURSES[0], template_id)
        self.at[tenant] = organization
        self.templates[tenant] = template_id
        return organization

    def complete(
        self,
        tenant: str | None,
        member_id: str = "42",
        course_id: str = "py-101",
        *,
        member: Member | None = None,
        **given: t.Any,
    ) -> None:
        if tenant is not None:
            given["tenant"] = tenant

        course_completed.send(
            self.host.app,
            member=member or a_member(member_id),
            course_id=course_id,
            **given,
        )
        self.host.wait_for_ring()

    def rows(self, tenant: str) -> list[Issuance]:
        return [row for row in self.host.rows() if row.tenant == tenant]

    def states(self, tenant: str) -> list[str]:
        return [row.state for row in self.rows(tenant)]

    def visitor(self, tenant: str | None) -> Visitor:
        return Visitor(self.host.app.test_client(), tenant)

    def run(self, *command: str, exit_code: int = 0) -> str:
        found = self.host.app.test_cli_runner().invoke(args=["credly", *command])
        assert found.exit_code == exit_code, found.output
        return found.output


class Visitor:
    """A browser at one community."""

    def __init__(self, client: FlaskClient, tenant: str | None) -> None:
        self.client = client
        self.headers = {} if tenant is None else {HEADER: tenant}
        self._token = ""

    def get(self, path: str) -> TestResponse:
        return self._open(self.client.get, path)

    def post(self, path: str, **fields: t.Any) -> TestResponse:
        if not self._token:
            page = self.get("/credly").text
            found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
            assert found is not None, page
            self._token = found[1]

        data = {"csrf_token": self._token, **fields}
        return self._open(self.client.post, path, data=data)

    def _open(self, method: t.Any, path: str, **given: t.Any) -> TestResponse:
        # Outside of the test's own context, which would be that of all requests.
        here = contextvars.Context()
        return here.run(
            method, PREFIX + path, headers=self.headers, buffered=True, **given
        )


def make_site(
    make_host: MakeHost,
    credly: CredlySimulator,
    *tenants: str,
    tenant: cabc.Callable[[], t.Any] = by_header,
    organization: Organization | None = None,
    **given: t.Any,
) -> Site:
    """Make a host with some communities that are connected, each to an organization of
    its own unless one is given. To be used in an application context.
    """
    host = make_host(tenant=tenant, **given)
    site = Site(host, credly)

    with host.app.app_context():
        for each in tenants:
            site.connect(each, organization)

    return site
