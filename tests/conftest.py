"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# No wall clock decides about a test, and no run leaves files behind.
settings.register_profile("stepwell", deadline=None, database=None, print_blob=True)
settings.load_profile("stepwell")
