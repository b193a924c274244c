"""The node of the Ray cluster that this process is on: closed to newcomers, and left by ours.

Ray has the machinery of it, which its autoscaler and `ray start --block` use as well. A node that
is closed goes away by itself once nobody is left on it.
"""

import time
from collections.abc import Collection
from typing import Any, cast

import ray as typed_ray
from ray import _raylet as typed_raylet
from ray.core.generated import autoscaler_pb2 as typed_pb2
from ray.exceptions import GetTimeoutError, RayError

from agent_actors.adapters.ray_runtime import (
    QUICK_ANSWER_S,
    SupervisorName,
    actors_in,
    supervisors_in,
    this_node,
)
from agent_actors.errors import ServiceUnreachable

# Half of Ray's public functions have unknown parts in their types, what is compiled has none.
ray, raylet, pb2 = (cast("Any", each) for each in (typed_ray, typed_raylet, typed_pb2))

# The one that Ray does not refuse while somebody is on the node.
REASON = pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
HEAD_RESOURCE = "node:__internal_head__"


class ThisNode:
    """The node of this process, which must be connected to Ray."""

    def __init__(self) -> None:
        self.id = this_node()
        self._left: set[str] | None = None
        self._gcs = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)

    @property
    def is_head(self) -> bool:
        """Whether the GCS is here, which all others need."""
        return any(
            node["NodeID"] == self.id and HEAD_RESOURCE in node["Resources"] for node in ray.nodes()
        )

    def close(self, grace_s: float) -> None:
        """Have Ray start nothing here any more. Raises ServiceUnreachable."""
        deadline_ms = int((time.time() + grace_s) * 1000)
        try:
            is_taken, reason = self._gcs.drain_node(
                self.id, REASON, "agent-actors drain --node", deadline_ms, timeout=QUICK_ANSWER_S
            )
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not close the node: {error}") from error
        if not is_taken:
            raise ServiceUnreachable(f"Ray does not close the node: {reason}")

    def others_closed(self) -> Collection[str]:
        """Return the other nodes that are there, but closed. Raises ServiceUnreachable."""
        try:
            closed = self._gcs.get_draining_nodes(timeout=QUICK_ANSWER_S)
            there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not tell of its nodes: {error}") from error
        return (there & set(closed)) - {self.id}

    def left(self, namespace: str, grace_s: float) -> list[str]:
        """Have those of this namespace leave, who finish what ends in time; return who is here.

        Returns at once: ask again until it is nobody. Raises ServiceUnreachable while no
        supervisor answers, in whose care all others are.
        """
        there = supervisors_in(namespace)
        answers = [self._asked(name, namespace, grace_s) for name in there]
        heard = [answer for answer in answers if isinstance(answer, list)]
        if heard or not there:
            self._left = {name for answer in heard for name in answer}
        elif any(isinstance(each, GetTimeoutError) for each in answers) or self._left is None:
            raise ServiceUnreachable(f"the supervisor does not answer: {answers[0]}")
        else:
            # It has left this node, as the last one, and may have found no other.
            self._left &= set(actors_in(namespace))
        return sorted(self._left)

    def _asked(
        self, name: SupervisorName, namespace: str, grace_s: float
    ) -> list[str] | RayError | ValueError:
        try:
            supervisor = ray.get_actor(str(name), namespace=namespace)
            return ray.get(supervisor.drain_node.remote(self.id, grace_s), timeout=QUICK_ANSWER_S)
        except (RayError, ValueError) as error:
            return error
