"""Nodes of the Ray cluster: closed to newcomers, and left by whoever of ours is on them.

Ray has the machinery of closing, which its autoscaler and `ray start --block` use as well. A node
that is closed goes away by itself once nobody at all is left on it.
"""

import time
from collections.abc import Collection
from typing import Any, cast

import ray as typed_ray
from ray import _raylet as typed_raylet
from ray.core.generated import autoscaler_pb2 as typed_pb2
from ray.exceptions import GetTimeoutError, RayError

from agent_actors.adapters.ray_actors import actors_in, this_node
from agent_actors.adapters.ray_runtime import QUICK_ANSWER_S, SupervisorName, supervisors_in
from agent_actors.errors import ServiceUnreachable

# Half of Ray's public functions have unknown parts in their types, what is compiled has none.
ray, raylet, pb2 = (cast("Any", each) for each in (typed_ray, typed_raylet, typed_pb2))

# The one that Ray does not refuse while somebody is on the node.
REASON = pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
HEAD_RESOURCE = "node:__internal_head__"


class Nodes:
    """The nodes of the cluster that this process is connected to, and the one that it is on."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._gcs = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        self._left: dict[str, set[str]] = {}
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
        reason = "agent-actors drain --node"
        try:
            is_taken, refusal = self._gcs.drain_node(
                self.this, REASON, reason, deadline_ms, timeout=QUICK_ANSWER_S
            )
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not close the node: {error}") from error
        if not is_taken:
            raise ServiceUnreachable(f"Ray does not close the node: {refusal}")

    def others_closed(self) -> Collection[str]:
        """Return the other nodes that are there, but closed. Raises ServiceUnreachable."""
        try:
            closed = self._gcs.get_draining_nodes(timeout=QUICK_ANSWER_S)
            there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not tell of its nodes: {error}") from error
        return (there & set(closed)) - {self.this}

    def left(self, node: str, grace_s: float) -> list[str]:
        """Have those of ours leave a closed node; return who is there still, at once.

        They finish what ends in time: ask again until it is nobody. Raises ServiceUnreachable while
        no supervisor answers, in whose care all others are.
        """
        try:
            self._ask(node, grace_s)
        except RayError as error:
            raise ServiceUnreachable(f"Ray does not tell of its actors: {error}") from error
        return sorted(self._left[node])

    def _ask(self, node: str, grace_s: float) -> None:
        there = supervisors_in(self._namespace)
        answers = [self._asked(name, node, grace_s) for name in there]
        heard = [answer for answer in answers if isinstance(answer, list)]
        if heard or not there:
            self._left[node] = {name for answer in heard for name in answer}
        elif node not in self._left or any(isinstance(each, GetTimeoutError) for each in answers):
            raise ServiceUnreachable(f"the supervisor does not answer: {answers[0]}")
        else:
            # It has left its node, as the last one, and may have found no other.
            self._left[node] &= set(actors_in(self._namespace))

    def _asked(
        self, name: SupervisorName, node: str, grace_s: float
    ) -> list[str] | RayError | ValueError:
        try:
            supervisor = ray.get_actor(str(name), namespace=self._namespace)
            return ray.get(supervisor.drain_node.remote(node, grace_s), timeout=QUICK_ANSWER_S)
        except (RayError, ValueError) as error:
            return error
