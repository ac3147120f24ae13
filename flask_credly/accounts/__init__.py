"""Connect, reconnect, remove; badge templates and mappings.

Every function that changes something commits it.
"""

from .connecting import check as check
from .connecting import connect as connect
from .connecting import Connected as Connected
from .connecting import CouldNotVerify as CouldNotVerify
from .connecting import get as get
from .connecting import NoKey as NoKey
from .connecting import NotConnected as NotConnected
from .connecting import NotVerified as NotVerified
from .connecting import OtherOrganization as OtherOrganization
from .connecting import remove as remove
from .connecting import StillRemoving as StillRemoving
from .connecting import TooOften as TooOften
from .connecting import Unfit as Unfit
from .connecting import verify as verify
from .mappings import add_mapping as add_mapping
from .mappings import AlreadyMapped as AlreadyMapped
from .mappings import change_mapping as change_mapping
from .mappings import change_options as change_options
from .mappings import course_of as course_of
from .mappings import get_mapping as get_mapping
from .mappings import get_mapping_of as get_mapping_of
from .mappings import get_removed as get_removed
from .mappings import list_mappings as list_mappings
from .mappings import mapped_courses as mapped_courses
from .mappings import remove_mapping as remove_mapping
from .mappings import titles as titles
from .mappings import UnknownMapping as UnknownMapping
from .mappings import UnknownTemplate as UnknownTemplate
from .templates import count_templates as count_templates
from .templates import find_twins as find_twins
from .templates import get_template as get_template
from .templates import list_templates as list_templates
from .templates import mapped_and_gone as mapped_and_gone
from .templates import mapped_and_single as mapped_and_single
from .templates import sync_templates as sync_templates
