"""Fixtures of the tests of kernels."""

import pytest

from decoding import kernels


@pytest.fixture(params=kernels.instruction_sets())
def instruction_set(request):
    """Every set of instructions that this processor has, in force while a test runs."""
    before = kernels.available()
    kernels.select(request.param)
    yield request.param
    kernels.select(before)
