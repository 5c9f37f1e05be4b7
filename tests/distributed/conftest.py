"""Numbers of ranks."""

import pytest


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def ranks(request):
    return request.param
