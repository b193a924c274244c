"""What `agent-actors up` starts for whatever is not configured: a NATS and a model server.

Ray is the third; `cli.up` starts it, while these two are still on their way.
"""

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

from msgspec.structs import replace

from agent_actors.config import Config
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.local.ending import end
from agent_actors.local.nats_server import LocalNats
from agent_actors.local.tied import tied

START_TIMEOUT_S = 60.0
POLL_S = 0.02


class LocalParts:
    """NATS and model server as processes that end with this one; none that is configured.

    `data_dir` keeps what must outlive us (streams), `run_dir` what need not (logs). Port 0
    lets the system choose the one of NATS.
    """

    def __init__(self, config: Config, *, data_dir: Path, run_dir: Path, port: int) -> None:
        self._config = config
        self._data_dir = data_dir
        self._port = port
        self._nats = None if config.nats.url else LocalNats(data_dir / "nats", port=port)
        self._model = None if config.vllm.urls else LocalModel(run_dir)
        self._model_url = ""

    async def start(self) -> None:
        """Start both; NATS is ready on return, the model server soon after.

        Raises ConfigError when port or folder cannot be had, ServiceUnreachable.
        """
        if self._model:
            await self._model.start()
        if self._nats:
            _check_port(self._port)
            try:
                await self._nats.start()
            except OSError as error:
                raise ConfigError(
                    f"{self._data_dir}: {error.strerror}; name a folder with --data-dir"
                ) from error

    async def ready(self) -> Config:
        """Return the configuration with where they are. Raises ServiceUnreachable."""
        if self._model:
            self._model_url = await self._model.ready()
        return self.located(self._config)

    def located(self, config: Config) -> Config:
        """Return a configuration with where those are that it does not name."""
        if self._nats:
            config = replace(config, nats=replace(config.nats, url=self._nats.url))
        if self._model_url:
            config = replace(config, vllm=replace(config.vllm, urls=(self._model_url,)))
        return config

    async def watch(self) -> None:
        """Wait for one of them to end by itself. Raises ServiceUnreachable then."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        processes = {"nats-server": self._nats, "the model server": self._model}
        with contextlib.ExitStack() as stack:
            for name, process in processes.items():
                if process is None:
                    continue
                try:
                    descriptor = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    _settle(ended, name)
                    continue
                stack.callback(os.close, descriptor)
                loop.add_reader(descriptor, _settle, ended, name)
                stack.callback(loop.remove_reader, descriptor)
            raise ServiceUnreachable(f"{await ended} has ended, so nothing can go on")

    async def stop(self) -> None:
        """End them, by force if they take long."""
        if self._model:
            await self._model.stop()
        if self._nats:
            await self._nats.stop()


class LocalModel:
    """The simulated model server, on a port that the system chooses."""

    def __init__(self, folder: Path) -> None:
        self._log_file = folder / "model-server.log"
        self._port_file = folder / "model-server.port"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 when it is not running."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start the process, without waiting until it is ready."""
        command = ["-m", "agent_actors", "model-server", "--port", "0", "--port-file"]
        with self._log_file.open("wb") as log_file:
            self._process = await asyncio.create_subprocess_exec(
                *tied(Path(sys.executable), *command, str(self._port_file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # A Ctrl-C on the terminal is ours to handle, in our order.
                start_new_session=True,
            )

    async def ready(self) -> str:
        """Return its URL once it listens. Raises ServiceUnreachable."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._port_file.exists():
                    if self._process is None or self._process.returncode is not None:
                        raise ServiceUnreachable(
                            f"the model server did not start: {self._last_words()}"
                        )
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ServiceUnreachable(
                f"the model server was not ready within {START_TIMEOUT_S:g} s: {self._last_words()}"
            ) from None
        return f"http://127.0.0.1:{self._port_file.read_text()}"

    async def stop(self) -> None:
        """End it; requests that run are answered with `abort`."""
        process, self._process = self._process, None
        if process is not None:
            await end(process)

    def _last_words(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def _check_port(port: int) -> None:
    """Raise ConfigError, with what to do, when NATS cannot have the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"NATS cannot have port {port}: {error.strerror}. If another `agent-actors up` or "
                "a NATS of yours is there, stop it, or use it by setting nats.url; --port takes "
                "another port, 0 any free one."
            ) from error


def _settle(ended: asyncio.Future[str], name: str) -> None:
    if not ended.done():
        ended.set_result(name)
