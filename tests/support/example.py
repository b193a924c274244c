"""The usage example of the README, as a function that a Ray worker can import."""

from typing import Any

from agent_actors import (
    AgentConfig,
    AgentRole,
    AsyncioExecutor,
    NATSResultPublisher,
    RayAgentExecutor,
    VLLMHTTPClient,
)
from agent_actors.ports import ResultPublisher


def executor(model_url: str, publisher: ResultPublisher) -> RayAgentExecutor:
    config = AgentConfig(
        agent_id="agent-123", role=AgentRole.DEV, vllm_url=model_url, enable_tools=False
    )
    client = VLLMHTTPClient(
        vllm_url=config.vllm_url,
        agent_id=config.agent_id,
        role=str(config.role),
        model=config.model,
    )
    return RayAgentExecutor(
        config=config,
        publisher=publisher,
        vllm_client=client,
        async_executor=AsyncioExecutor(),
    )


def run_example(model_url: str, nats_url: str) -> dict[str, Any]:
    return executor(model_url, NATSResultPublisher(nats_url=nats_url)).run(
        task_id="task-abc-789",
        task_description="Implement a binary search tree in Python",
        constraints={"language": "python", "timeout": 120},
    )
