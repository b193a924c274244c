"""`serve`: the service in production, on what the configuration names."""

import asyncio
import sys
from functools import partial

import click

from agent_actors.cli.foreground import say_ready, until_signalled
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.provision import prepare_streams
from agent_actors.cli.running import connected_ray, run_service
from agent_actors.following import FollowedConfig
from agent_actors.observe.logs import configure_logs


@click.command()
@click.option(
    "--no-provision", is_flag=True, help="Only check that JetStream has what the service needs."
)
@json_option
@shared_options
@click.pass_obj
def serve(invocation: Invocation, *, no_provision: bool, as_json: bool) -> None:
    """Run the service on the NATS, Ray and vLLM configured.

    It starts the service on the Ray cluster, or finds the one that runs there, and stays. Ctrl-C
    or SIGTERM drains and stops the service; when this process is killed the service goes on.
    An edit of the configuration's file is taken over while tasks run.
    """
    followed = FollowedConfig(invocation.config_file, invocation.load_complete)
    config = followed.load()
    configure_logs("serve", level="debug" if invocation.debug else None)
    say = partial(say_ready, config, out=sys.stdout, as_json=as_json)
    with until_signalled(), asyncio.Runner() as runner:
        runner.run(prepare_streams(config, only_check=no_provision))
        with connected_ray(config):
            run_service(
                config,
                runner,
                say_ready=say,
                watch_also=asyncio.Event().wait,
                followed=followed,
                provisions=not no_provision,
            )
