"""Tests of the store; the asserts of their helpers tell what they compared, as those of a test do."""

import pytest

for _of in ("download", "hub", "library", "place"):
    pytest.register_assert_rewrite(f"{__name__}.{_of}_fixtures")
