"""What Ray reads of the environment in the tests, and in what they start."""

import os

from agent_actors.local.ray_environment import prepare_local_ray

# Ray gives its workers a niceness of 15, so whatever else is busy on a machine leaves them next to
# nothing: beside two busy processes on two cores, a drain that takes 7 s without it takes 27 s.
RAY_OF_TESTS = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}


def prepare_ray_of_tests() -> None:
    """Set all of it. Call it before Ray is imported, which reads it then."""
    prepare_local_ray()
    os.environ |= RAY_OF_TESTS
