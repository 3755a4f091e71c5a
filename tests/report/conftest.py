"""The made-up result as a fixture."""

from __future__ import annotations

import pytest
from made_up import made_up_result

from secateur.results import Result


@pytest.fixture
def result() -> Result:
    return made_up_result()
