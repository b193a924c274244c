"""Nodes of the Ray cluster: closed to newcomers, and left by whoever of ours is on them.

Ray has the machinery of closing, which its autoscaler and `ray start --block` use as well. A node
that is closed goes away by itself once nobody at all is left on it.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any, cast

import ray as typed_ray
from ray import _raylet as typed_raylet
from ray.core.generated import autoscaler_pb2 as typed_pb2
from ray.exceptions import GetTimeoutError, RayError

from agent_actors.adapters.ray_actors import AGENT_ID, this_node
from agent_actors.adapters.ray_runtime import QUICK_ANSWER_S, SupervisorName, supervisors_in
from agent_actors.errors import ServiceUnreachable

# Half of Ray's public functions have unknown parts in their types, what is compiled has none.
ray, raylet, pb2 = (cast("Any", each) for each in (typed_ray, typed_raylet, typed_pb2))

# The one that Ray does not refuse while somebody is on the node.
REASON = pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
HEAD_RESOURCE = "node:__internal_head__"
COMMAND = "agent-actors drain --node"
# By this Ray's table of jobs tells who leaves a node.
LEAVING = {"command": COMMAND}


class Nodes:
    """The nodes of the cluster that this process is connected to, and the one that it is on."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._gcs = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        self._stopped: dict[str, Any] = {}
        self.this = this_node()

    @property
    def is_head(self) -> bool:
        """Whether the GCS is here, which all others need."""
        return any(
            node["NodeID"] == self.this and HEAD_RESOURCE in node["Resources"]
            for node in ray.nodes()
        )

    def close_this(self, grace_s: float) -> None:
        """Have Ray start nothing here any more. Raises ServiceUnreachable."""
        deadline_ms = int((time.time() + grace_s) * 1000)
        try:
            is_taken, refusal = self._gcs.drain_node(
                self.this, REASON, COMMAND, deadline_ms, timeout=QUICK_ANSWER_S
            )
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not close the node: {error}") from error
        if not is_taken:
            raise ServiceUnreachable(f"Ray does not close the node: {refusal}")

    def others_leave(self) -> bool:
        """Tell whether somebody leaves another node just now, and so needs the GCS.

        That is who has connected with `LEAVING` for metadata. Raises ServiceUnreachable.
        """
        me = ray.get_runtime_context().get_job_id()
        try:
            jobs = self._gcs.get_all_job_info(
                skip_submission_job_info_field=True,
                skip_is_running_tasks_field=True,
                timeout=QUICK_ANSWER_S,
            )
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not tell of its jobs: {error}") from error
        return any(
            not job.is_dead
            and job.config.ray_namespace == self._namespace
            and LEAVING.items() <= dict(job.config.metadata).items()
            and job_id.hex() != me
            for job_id, job in jobs.items()
        )

    def left(self, grace_s: float) -> list[str]:
        """Have those of ours leave this node, closed as it is; return who is there still, at once.

        They finish what ends in time: ask again until it is nobody. Raises ServiceUnreachable while
        a supervisor, in whose care all others are, is there and does not answer.
        """
        try:
            return self._asked_of_all(grace_s)
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not tell of its actors: {error}") from error

    def _asked_of_all(self, grace_s: float) -> list[str]:
        answers = [self._asked(name, grace_s) for name in supervisors_in(self._namespace)]
        heard = [answer for answer in answers if isinstance(answer, list)]
        silent = [answer for answer in answers if isinstance(answer, GetTimeoutError)]
        if heard:
            return sorted({name for answer in heard for name in answer})
        if silent:
            raise ServiceUnreachable(f"the supervisor does not answer: {silent[0]}")
        # None is there, or each has lost its node and may find no other: nobody cares for actors.
        return self._stopping(grace_s)

    def _stopping(self, grace_s: float) -> list[str]:
        """Have the actors here stop without a supervisor; return who is there still."""
        here = asyncio.run(self._actors_here())
        for name in here:
            with suppress(ValueError):  # it has just ended
                actor = ray.get_actor(name, namespace=self._namespace)
                if name not in self._stopped:
                    self._stopped[name] = actor.stop.remote(grace_s)
                if ray.wait([self._stopped[name]], timeout=0)[0]:
                    ray.kill(actor, no_restart=True)
        return sorted(here)

    async def _actors_here(self) -> set[str]:
        alive = await self._gcs.async_get_all_actor_info(
            actor_state_name="ALIVE", timeout=QUICK_ANSWER_S
        )
        return {
            actor.name
            for actor in alive.values()
            if actor.ray_namespace == self._namespace
            and AGENT_ID.fullmatch(actor.name)
            and actor.address.node_id.hex() == self.this
        }

    def _asked(self, name: SupervisorName, grace_s: float) -> list[str] | RayError | ValueError:
        try:
            supervisor = ray.get_actor(str(name), namespace=self._namespace)
            return ray.get(supervisor.drain_node.remote(self.this, grace_s), timeout=QUICK_ANSWER_S)
        except (RayError, ValueError) as error:
            return error
