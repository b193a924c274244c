"""Whether pods can read the configuration that they are given, and know their commands."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from ray.scripts.scripts import start
from support.manifests.files import SECRETS
from support.manifests.reading import (
    Finding,
    Manifest,
    PodTemplate,
    environment,
    of_kind,
    pod_templates,
    ray_clusters,
    ray_pods,
)

from agent_actors.cli import commands
from agent_actors.config import Config
from agent_actors.config_file import FILE_VARIABLE, load_config
from agent_actors.errors import ConfigError

Pairs = tuple[tuple[str, str], ...]

RAY_START = {name.removeprefix("--") for option in start.params for name in option.opts}


def configuration(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that each container can read the configuration that it is given, as it is given."""
    for pod in pod_templates(manifests):
        for container in pod.containers:
            if FILE_VARIABLE in environment(container):
                config = _config_of(pod, container, manifests)
                if isinstance(config, ConfigError):
                    yield Finding("config", f"{pod.where} {container['name']}", str(config))
        if pod.ray and FILE_VARIABLE not in environment(pod.spec["containers"][0]):
            yield Finding("config", pod.where, f"{FILE_VARIABLE} is not set")


def command_lines(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that our commands, and Ray's own, know the options that they are given."""
    for pod in pod_templates(manifests):
        for container in pod.containers:
            command = container.get("command", [])
            if command[:1] == ["agent-actors"]:
                try:
                    _parse(command[1:])
                except click.ClickException as error:
                    where = f"{pod.where} {container['name']}"
                    yield Finding("command", where, error.format_message())
    for cluster in ray_clusters(manifests):
        for group in (cluster.spec["headGroupSpec"], *cluster.groups):
            for name in group.get("rayStartParams", {}).keys() - RAY_START:
                yield Finding("command", cluster.where, f"`ray start` has no option --{name}")


def longest_task_s(manifests: list[Manifest]) -> float:
    """Return how long an attempt may take in any pool."""
    config = service_config(manifests)
    return max(pool.task_timeout_s for pool in config.pools.values()) if config else 0


def service_config(manifests: list[Manifest]) -> Config | None:
    """Return the configuration that Ray's pods get; None: they cannot read it."""
    for pod in ray_pods(manifests):
        config = _config_of(pod, pod.spec["containers"][0], manifests)
        return config if isinstance(config, Config) else None
    return None


def _config_of(
    pod: PodTemplate, container: Manifest, manifests: list[Manifest]
) -> Config | ConfigError:
    """Load the configuration with the files and variables that the container has."""
    files = {
        f"{mount['mountPath']}/{name}": text
        for mount in container.get("volumeMounts", ())
        for name, text in _files(pod.volumes.get(mount["name"], {}), manifests).items()
    }
    return _loaded(tuple(files.items()), tuple(environment(container).items()))


@cache
def _loaded(files: Pairs, variables: Pairs) -> Config | ConfigError:
    with TemporaryDirectory() as root:
        for path, text in files:
            file = Path(root + path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_moved(text, root))
        try:
            return load_config(None, {name: _moved(value, root) for name, value in variables})
        except ConfigError as error:
            return ConfigError(str(error).replace(root, ""))


def _moved(text: str, root: str) -> str:
    return text.replace("/etc/agent-actors/", f"{root}/etc/agent-actors/")


def _files(volume: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    if secret := volume.get("secret"):
        return dict.fromkeys(SECRETS.get(secret["secretName"], ()), "secret")
    name = volume.get("configMap", {}).get("name")
    for each in of_kind(manifests, "ConfigMap"):
        if each["metadata"]["name"] == name:
            return each["data"]
    return {}


def _parse(arguments: list[str]) -> None:
    context = click.Context(commands)
    command = commands.get_command(context, arguments[0])
    if command is None:
        raise click.UsageError(f"no such command: {arguments[0]}")
    command.make_context(arguments[0], arguments[1:], parent=context)
