"""The service: how to ask Credly, and how to read what it says.

Knows no Flask and no database. What is said about Credly's behaviour in this package
comes from its public documentation of the Web Service API, of OAuth and of issued
badges; where that is silent, the cautious reading was taken.
"""

from .badge import Badge as Badge
from .badge import read_time as read_time
from .client import BadgePage as BadgePage
from .client import BadgeRequest as BadgeRequest
from .client import Client as Client
from .client import plain_text as plain_text
from .client import same_text as same_text
from .client import SearchPage as SearchPage
from .client import TemplatePage as TemplatePage
from .client import TemplateRow as TemplateRow
from .token import fetch_token as fetch_token
from .token import Token as Token
from .transport import Deadline as Deadline
from .transport import leaving_before as leaving_before
