"""The model server, over HTTP: `client` asks, `endpoints` chooses whom, `replies` understands."""

from agent_actors.adapters.vllm.client import VLLMHTTPClient

__all__ = ["VLLMHTTPClient"]
