"""What the manifests say, run on a Ray cluster of this machine: KubeRay's part, and Kubernetes'.

Configuration, environment, preStop and the Serve application are those that the overlay for
production renders. Changed is only what differs from one place to the next: where NATS and the
model are, the folders that are mounted, how big a pool is.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml
from support.manifests.reading import (
    DEPLOY,
    Manifest,
    environment,
    of_kind,
    ray_clusters,
    render,
)
from support.ray_cluster import RayCluster, RayNode
from support.ready import free_port
from support.until import until

from agent_actors.config_file import FILE_VARIABLE

MOUNTED = "/etc/agent-actors"
# A head with a dashboard starts the slowest.
RUNNING_WITHIN_S = 60.0


class Contents(NamedTuple):
    """What of the rendered manifests runs in pods."""

    config: dict[str, Any]
    serve: dict[str, Any]
    environment: dict[str, str]
    pre_stop: list[str]
    provision: list[str]
    provision_environment: dict[str, str]

    @classmethod
    def of(cls, overlay: str) -> "Contents":
        manifests = render(DEPLOY / "overlays" / overlay)
        (cluster,) = ray_clusters(manifests)
        (worker,) = cluster.groups
        container = worker["template"]["spec"]["containers"][0]
        variables = environment(container)
        (job,) = of_kind(manifests, "Job")
        provision = job["spec"]["template"]["spec"]["containers"][0]
        return cls(
            config=yaml.safe_load(_mounted(manifests, variables[FILE_VARIABLE])),
            serve=yaml.safe_load(cluster.owner["spec"]["serveConfigV2"]),
            environment=variables,
            pre_stop=container["lifecycle"]["preStop"]["exec"]["command"],
            provision=provision["command"],
            provision_environment=environment(provision),
        )


class Generation:
    """One Ray cluster of a RayService, with its own configuration file."""

    def __init__(self, contents: Contents, folder: Path, *, first: int) -> None:
        self.contents = contents
        self.cluster = RayCluster(folder, first)
        self._folder = folder / "mounted"
        self._port = free_port()
        self._dashboard = free_port()
        self.cluster.environment |= self._moved(contents.environment)
        self.cluster.environment["RAY_ADDRESS"] = self.cluster.address

    def start(self, *, workers: int, cpus: float) -> None:
        """Start the head and its workers, side by side."""
        # All heads of this machine have one address.
        agent, client = free_port(), free_port()
        self.cluster.start(
            f"--dashboard-port={self._dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
        )
        self.cluster.fill(workers, cpus=cpus)

    def mount(self, secrets: Mapping[str, str]) -> None:
        """Have these files where Secrets are mounted."""
        for name, text in secrets.items():
            file = self._folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def configure(self, **sections: Any) -> None:
        """Mount the configuration anew, with some sections in place of those in the manifest."""
        file = self._folder / "config/agent-actors.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({**self.contents.config, **sections})
        new = file.with_suffix(".new")
        new.write_text(text.replace(MOUNTED, str(self._folder)))
        new.replace(file)

    async def provision(self) -> None:
        """Run what the Job for it runs."""
        env = {**os.environ, **self._moved(self.contents.provision_environment)}
        program = Path(sys.executable).with_name(self.contents.provision[0])
        process = await asyncio.create_subprocess_exec(
            program, *self.contents.provision[1:], env=env, stdout=PIPE, stderr=STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def deploy(self) -> None:
        """Hand the application to the dashboard, as KubeRay's operator does, and wait for it."""
        text = json.dumps(self.contents.serve).replace(MOUNTED, str(self._folder))
        config = json.loads(text)
        config["http_options"] |= {"host": "127.0.0.1", "port": self._port}
        await self._dashboard_says("PUT", config)
        await until(self._is_running, timeout_s=RUNNING_WITHIN_S)

    async def get(self, path: str) -> tuple[int, Any]:
        """Return what Serve's proxy answers."""
        url = f"http://127.0.0.1:{self._port}{path}"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            return response.status, json.loads(await response.read())

    async def pre_stop(self, node: RayNode) -> tuple[int, str]:
        """Run the command that Kubernetes runs in a pod before it ends."""
        return await node.run(*self.contents.pre_stop, env=self.cluster.environment)

    async def end(self, node: RayNode) -> tuple[int, str]:
        """End a pod as Kubernetes does; its time of grace is over at once."""
        told = await self.pre_stop(node)
        node.kill()
        return told

    async def application(self) -> dict[str, Any]:
        """Return what Serve says of the application."""
        told = await self._dashboard_says("GET")
        (application,) = told["applications"].values()
        return application

    def _moved(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return variables of a container, with what is mounted there in our folder."""
        return {
            name: value.replace(MOUNTED, str(self._folder))
            for name, value in variables.items()
            if name != "HOME"
        }

    async def _is_running(self) -> bool:
        application = await self.application()
        assert application["status"] != "DEPLOY_FAILED", application
        return application["status"] == "RUNNING"

    async def _dashboard_says(self, method: str, config: Any = None) -> Any:
        url = f"http://127.0.0.1:{self._dashboard}/api/serve/applications/"
        token = self.cluster.environment["RAY_AUTH_TOKEN"]
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, url, json=config) as response,
        ):
            text = await response.text()
            assert response.status == 200, text
            return json.loads(text) if text else None


def _mounted(manifests: list[Manifest], path: str) -> str:
    """Return the contents of a file that the pods have of the ConfigMap."""
    (name,) = (
        each["data"][Path(path).name]
        for each in of_kind(manifests, "ConfigMap")
        if Path(path).name in each["data"]
    )
    return name
