"""What every test gets, and what it may ask for: a NATS."""

from collections.abc import Iterator

import pytest
import structlog
from support.nats import nats_server, pytest_report_header, start_nats
from support.ray_environment import prepare_ray_of_tests

__all__ = ["nats_server", "pytest_report_header", "start_nats"]

# Ray reads its environment when it is imported, which any test module may do first.
prepare_ray_of_tests()


@pytest.fixture(autouse=True)
def logging_as_it_comes() -> Iterator[None]:
    """Undo what the test, or a client in it, has configured: structlog's settings are global."""
    yield
    structlog.reset_defaults()
