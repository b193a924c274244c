"""One task from a program of your own: synchronously, without a queue, in the same use case.

It works anywhere, inside a plain Ray task too. There is no ledger here: who calls `run` twice
with one task id works twice; only the announcement is deduplicated, by JetStream's window.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from agent_actors.announcement import result_message
from agent_actors.assembly import execute_agent_task
from agent_actors.config import PoolConfig
from agent_actors.contract import (
    MAX_SECONDS,
    AgentResult,
    AgentTask,
    decode_task,
    encode,
    message_id,
    task_subject,
)
from agent_actors.observe.logs import keep_quiet
from agent_actors.ports import (
    AgentConfig,
    AsyncExecutor,
    ExecutionRequest,
    ResultPublisher,
    VLLMClient,
)
from agent_actors.workbench import Workbench

MAX_TASK_BYTES = 64 * 1024 * 1024
DEFAULT_POOL = PoolConfig()
POOL_NAME = "library"

T = TypeVar("T")


class AsyncioExecutor:
    """Runs a coroutine to its end, from code that is not async."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the coroutine's value.

        Called from within a running event loop, it works in a thread of its own and blocks
        that loop meanwhile.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(coroutine)
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, coroutine).result()


class RayAgentExecutor:
    """Does one task and announces its result, with collaborators that the caller made.

    `pool` says what an agent with `enable_tools` may do: its `tools` and `roles`.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        publisher: ResultPublisher,
        vllm_client: VLLMClient,
        async_executor: AsyncExecutor,
        pool: PoolConfig = DEFAULT_POOL,
    ) -> None:
        keep_quiet()
        self._config = config
        self._publisher = publisher
        self._client = vllm_client
        self._executor = async_executor
        self._pool = pool

    def run(
        self,
        task_id: str,
        task_description: str,
        constraints: Mapping[str, Any] | None = None,
        *,
        diversity: bool = False,
    ) -> dict[str, Any]:
        """Return the result as a dict, its `status` `completed` or `failed`; announce it too.

        Raises InvalidTask when this is no task, PublishFailed or ServiceUnreachable when the
        result could not be announced.
        """
        task = AgentTask(
            task_id=task_id,
            task_description=task_description,
            diversity=diversity,
            constraints=dict(constraints or {}),
        )
        result = self._executor.run(self._run(self._request(task)))
        return msgspec.to_builtins(result)

    def _request(self, task: AgentTask) -> ExecutionRequest:
        subject = task_subject(str(self._config.role))
        valid, known = decode_task(encode(task), subject, max_bytes=MAX_TASK_BYTES)
        return ExecutionRequest(
            task=valid,
            constraints=known,
            agent=self._config,
            timeout_s=min(known.timeout or self._config.timeout_s, MAX_SECONDS),
        )

    async def _run(self, request: ExecutionRequest) -> AgentResult:
        """Open, work, announce, close: each call has an event loop of its own."""
        try:
            result = await self._attempt(request)
            payload = encode(result)
            msg_id = message_id(request.task.task_id, generation=0)
            await self._publisher.publish(result_message(payload, msg_id, {}))
        finally:
            await self._client.close()
            await self._publisher.close()
        return result

    async def _attempt(self, request: ExecutionRequest) -> AgentResult:
        if not request.agent.enable_tools:
            return (await execute_agent_task(self._client).run(request)).result
        workbench = await Workbench.open(POOL_NAME, self._pool)
        try:
            result = (await execute_agent_task(self._client, workbench).run(request)).result
            await workbench.clear_away(result.task_id, result.status)
        finally:
            await workbench.close()
        return result
