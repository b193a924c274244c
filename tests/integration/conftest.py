"""What integration tests may ask for: a Ray."""

import os

from agent_actors.local.ray_environment import prepare_local_ray

prepare_local_ray()
os.environ["RAY_AUTH_MODE"] = "token"

from support.service import local_ray  # noqa: E402 - Ray reads its environment when imported

__all__ = ["local_ray"]
