"""Real workspaces in a test's folder, and their file tools called as the loop calls them."""

from pathlib import Path
from unittest.mock import patch

from agent_actors.config_tools import ToolsConfig, WorkspaceConfig
from agent_actors.tools import roots
from agent_actors.tools.files import FILE_TOOLS
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.workspace import Workspace, Workspaces

TOOLS = {tool.name: tool for tool in FILE_TOOLS}
FIRST_UID = 2_000_000_000


def workspaces_in(root: Path, *, pool_name: str = "default", **config: object) -> Workspaces:
    """Return what makes workspaces beneath the folder, and leaves nothing elsewhere."""
    settings = WorkspaceConfig(root=str(root), **config)
    with patch.object(roots.tempfile, "gettempdir", lambda: str(root.parent)):
        return Workspaces(settings, pool_name=pool_name, first_uid=FIRST_UID)


class Agent:
    """Calls file tools in its workspace, as a model would have it."""

    def __init__(self, workspace: Workspace, settings: ToolsConfig | None = None) -> None:
        self.workspace = workspace
        self.path = workspace.path
        self._surroundings = Surroundings(
            workspace=workspace, settings=settings or ToolsConfig(), web=None
        )

    async def use(self, name: str, /, **arguments: object) -> str:
        """Return what the model is told. Raises ToolError."""
        return (await TOOLS[name].call(self._surroundings, arguments)).text


def names_in(folder: Path) -> list[str]:
    """Return what is in the folder."""
    return sorted(path.name for path in folder.iterdir())
