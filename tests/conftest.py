"""What every test gets, and what it may ask for: a NATS."""

import os
from collections.abc import Iterator

import pytest
import structlog
from support.nats import nats_server, pytest_report_header, start_nats

from agent_actors.local.ray_environment import prepare_local_ray

__all__ = ["nats_server", "pytest_report_header", "start_nats"]

# Ray reads its environment when it is imported, which any test module may do first.
prepare_local_ray()
os.environ["RAY_AUTH_MODE"] = "token"


@pytest.fixture(autouse=True)
def logging_as_it_comes() -> Iterator[None]:
    """Undo what the test, or a client in it, has configured: structlog's settings are global."""
    yield
    structlog.reset_defaults()
