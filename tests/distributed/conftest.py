"""Numbers of ranks."""

import pytest


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    return request.param
