"""The exam's assertions explain themselves like those of test files."""

import pytest

pytest.register_assert_rewrite("tests.lycoris.conformance")
