"""One running engine per kind of model, for all tests."""

import pytest

pytest.importorskip("vllm", reason="the package vllm is not installed: make test-vllm runs these in an environment of its own")

from helpers.vllm_models import KINDS, OPTIONS

from advalign.rollout.vllm import VLLM


@pytest.fixture(scope="session", params=list(KINDS))
def running(request):
    """(network, engine). A test that moves the weights gives them a version of its own."""
    return KINDS[request.param](), VLLM(options=OPTIONS)
