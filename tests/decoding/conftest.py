"""Fixtures of the tests of kernels."""

import pytest

from decoding import kernels

SETS = kernels.instruction_sets()


def in_force(name):
    before = kernels.available()
    kernels.select(name)
    yield name
    kernels.select(before)


@pytest.fixture(params=SETS)
def instruction_set(request):
    """Every set of instructions that this processor has, in force while a test runs."""
    yield from in_force(request.param)


@pytest.fixture(params=[name for name in SETS if name not in ("avx512_vnni", "avx512_amx")])
def vector_set(request):
    """As `instruction_set`, of attention and logits, which with VNNI and AMX are AVX-512's."""
    yield from in_force(request.param)
