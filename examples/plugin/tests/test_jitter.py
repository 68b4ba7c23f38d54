"""The method keeps what every posterior promises."""

import pytest

from bayes_bench.testing import CHECKS
from bayes_bench_jitter import Jitter


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(Jitter)
