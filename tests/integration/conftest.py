"""What integration tests may ask for: a Ray."""

from support.service import local_ray

__all__ = ["local_ray"]
