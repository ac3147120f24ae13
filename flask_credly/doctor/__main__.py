"""Says how to run it."""

import sys

sys.exit("Run the doctor through Flask with your app: flask --app … credly doctor")
