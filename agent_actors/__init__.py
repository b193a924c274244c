"""AI-agent tasks as a long-lived service on Ray: NATS JetStream in, vLLM behind.

The map of the package, in the order in which a task travels:

    contract      what is on the wire: tasks, results, subjects, headers
    supervisor    starts, stops and passes on pools; control answers who asks it
    pool          pulls tasks and hands them out; dispatch keeps its books, breaker stops it
    crew          the pool's actors, who come and go as roster decides, to the size that sizing
                  and scaling say; watching (of processes) finds those that are lost
    actor         works on many tasks at once
    settlement    one delivery, from beginning to exactly one result; reading, leases, ledger,
                  disposition, announcement and oversize each hold a part of that promise
    execution     one attempt: a strategy under a deadline; journal keeps its turns, and attempts
                  ends it when its task is cancelled
    strategies    the ways of working on a task: a proposal, or a loop of turns with tools
    tools         what an agent can call, in its workspace and a sandbox
    asking        which tasks of an actor want something of the model just now, and of which server
    ports         what all of it needs of the outside, as Protocols
    adapters      the outside: jetstream, vllm, Ray (ray_runtime, ray_actors), web, mcp
    assembly      puts an agent together, at its workbench; ray_runtime does so with a supervisor
    kept          stays with a service through edits of its configuration (following); readiness
                  judges whether it works, for whoever asks ray_serve, which is Ray Serve's way in
    client, cli, library    the ways in
    config, local, observe  configuration, and config_diff of two; what `up` starts; logs
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agent_actors.adapters.jetstream.publishing import NATSResultPublisher
    from agent_actors.adapters.vllm import VLLMHTTPClient
    from agent_actors.client import AgentClient
    from agent_actors.contract import AgentResult, AgentRole, AgentTask
    from agent_actors.execution import ExecuteAgentTask
    from agent_actors.library import AsyncioExecutor, RayAgentExecutor
    from agent_actors.ports import (
        AgentConfig,
        AsyncExecutor,
        ExecutionRequest,
        ResultPublisher,
        VLLMClient,
    )
    from agent_actors.strategies.proposal import GenerateProposal

__all__ = [
    "AgentClient",
    "AgentConfig",
    "AgentResult",
    "AgentRole",
    "AgentTask",
    "AsyncExecutor",
    "AsyncioExecutor",
    "ExecuteAgentTask",
    "ExecutionRequest",
    "GenerateProposal",
    "NATSResultPublisher",
    "RayAgentExecutor",
    "ResultPublisher",
    "VLLMClient",
    "VLLMHTTPClient",
    "__version__",
]

_HOMES = {
    "AgentClient": "client",
    "AgentConfig": "ports",
    "AgentResult": "contract",
    "AgentRole": "contract",
    "AgentTask": "contract",
    "AsyncExecutor": "ports",
    "AsyncioExecutor": "library",
    "ExecuteAgentTask": "execution",
    "ExecutionRequest": "ports",
    "GenerateProposal": "strategies.proposal",
    "NATSResultPublisher": "adapters.jetstream.publishing",
    "RayAgentExecutor": "library",
    "ResultPublisher": "ports",
    "VLLMClient": "ports",
    "VLLMHTTPClient": "adapters.vllm",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import a public name when it is first used, so that no command pays for all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
