"""The folder that a task's agent works in: made for it alone, found again by who takes it over."""

from pathlib import Path
from typing import Any

from msgspec import Struct

from agent_actors.config_tools import WorkspaceConfig
from agent_actors.contract import ResultStatus


class WorkspaceId(Struct, frozen=True, kw_only=True):
    """What a journal keeps of a workspace: where it was, and the token that proves it the same."""

    path: str
    token: str


class Workspace:
    """A folder of one task. `uid` owns its files and runs its commands; None: the service's own."""

    def __init__(self, workspace_id: WorkspaceId, *, uid: int | None = None) -> None:
        self.id = workspace_id
        self.path = Path(workspace_id.path)
        self.uid = uid

    async def artifacts(self) -> dict[str, Any]:
        """Return `files_changed` and `diff`: what differs from how the task found its folder."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the folder, which stays: another attempt may take it up."""
        raise NotImplementedError


class Workspaces:
    """Makes workspaces under the pool's root, finds them again, removes them."""

    def __init__(self, config: WorkspaceConfig, *, pool_name: str, first_uid: int) -> None:
        self._config = config
        self._pool_name = pool_name
        self._first_uid = first_uid

    async def make(self, task_id: str) -> Workspace:
        """Return a new empty workspace. Raises WorkspaceUnavailable."""
        raise NotImplementedError

    async def reopen(self, known: WorkspaceId) -> Workspace | None:
        """Return the workspace if it is there and no other attempt holds it."""
        raise NotImplementedError

    async def clear_away(self, task_id: str, status: ResultStatus) -> None:
        """Remove the task's workspaces on this machine, unless they are to be kept."""
        raise NotImplementedError

    async def sweep(self) -> None:
        """Remove what is kept or abandoned for longer than configured."""
        raise NotImplementedError
