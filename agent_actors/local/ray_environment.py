"""What must stand in the environment before Ray is imported, for a Ray of our own."""

import os

# Read by Ray when it is imported. The second makes every one of its servers listen on loopback
# only, as Ray does by itself on macOS and Windows (ray-project/ray#18730).
LOCAL_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def prepare_local_ray() -> None:
    """Set what is not set already. Call it before `adapters.ray_runtime` is imported."""
    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
