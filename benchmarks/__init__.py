"""What Flask-Credly costs, each figure beside a peer that was measured in turn with it.

``make bench``, or ``python -m benchmarks --help``. The absolute figures say something
about the machine, the ratios something about the code.
"""
