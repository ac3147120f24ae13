"""The pages. They call the rooms above and have neither SQL nor HTTP of their own."""

from .blueprint import make_blueprint as make_blueprint
