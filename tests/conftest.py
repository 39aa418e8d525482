"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# No wall clock decides about a test, and no run leaves files behind.
# At a desk each run looks elsewhere; where CI is set it looks where the last one did: a red build then means a change.
settings.register_profile("stepwell", deadline=None, database=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("stepwell"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "stepwell")
