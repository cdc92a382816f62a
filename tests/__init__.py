"""The tests. A package, so that the kit in ``daemon``, ``wire`` and ``fakes`` can be imported by name."""

import pytest

# The kit asserts too; rewriting shows the values, but only where it is asked for before the import.
pytest.register_assert_rewrite("tests.daemon", "tests.wire", "tests.fakes")
