"""The exam's assertions explain themselves like those of test files; a small model."""

import pytest
import torch

from tests.lycoris.small import Block

pytest.register_assert_rewrite("tests.lycoris.conformance")


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().requires_grad_(False)
