"""The images that scripts/image-check has built."""

import os
from collections.abc import Iterator

import pytest
from support.pods import Pod, running_pod


@pytest.fixture(scope="session")
def image() -> str:
    return _built("AGENT_ACTORS_IMAGE")


@pytest.fixture(scope="session")
def dev_image() -> str:
    return _built("AGENT_ACTORS_DEV_IMAGE")


@pytest.fixture(scope="module")
def pod(image: str) -> Iterator[Pod]:
    """A pod that does nothing by itself."""
    with running_pod(image, "sleep", "infinity") as pod:
        yield pod


def _built(variable: str) -> str:
    name = os.environ.get(variable)
    if not name:
        pytest.fail(f"{variable} is not set: run scripts/image-check, which sets it")
    return name
