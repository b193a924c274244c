"""The service on several nodes of a Ray cluster, as a test sees it: who is on which."""

import msgspec
from support.ray_cluster import RayCluster, RayNode
from support.service import SeenService

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.contract import TaskEvent

SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"


class ServiceOnNodes(SeenService):
    """The service on a cluster with two nodes beside its head; its supervisor is on one of them."""

    def __init__(self, link: Connection, cluster: RayCluster) -> None:
        super().__init__(link)
        self.cluster = cluster

    @property
    def supervisors_node(self) -> RayNode:
        (node,) = (node for node in self.cluster.nodes if node.pids(SUPERVISOR))
        return node

    @property
    def other_node(self) -> RayNode:
        (node,) = (node for node in self.cluster.nodes if not node.pids(SUPERVISOR))
        return node

    async def begin(self, tasks: list[str]) -> dict[str, str]:
        """Publish tasks; return which actor has begun each of them."""
        starts = await self.link.nc.subscribe("agent.events.*.started")
        for task_id in tasks:
            await self.publish(task_id)
        messages = [await starts.next_msg(timeout=20) for _ in tasks]
        await starts.unsubscribe()
        events = [msgspec.json.decode(each.data, type=TaskEvent) for each in messages]
        return {event.task_id: event.agent_id for event in events}


def tasks(name: str, count: int = 8) -> list[str]:
    """Return so many ids."""
    return [f"{name}-{number}" for number in range(count)]
