"""The model server, over HTTP.

`client` asks, `endpoints` chooses whom, `requests` words it, `transport` receives what comes, and
`replies` understands it: at once, or from `streams`, of which `teller` tells a listener. `context`
asks how much a model takes.
"""

from agent_actors.adapters.vllm.client import VLLMHTTPClient

__all__ = ["VLLMHTTPClient"]
