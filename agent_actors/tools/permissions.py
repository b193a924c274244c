"""Who may what: the tools of a role, narrowed by the task, never widened by it."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from agent_actors.config import RoleConfig
from agent_actors.contract import AgentRole, Constraints
from agent_actors.tools.registry import Tool

DEFAULT = "default"
FULL = "full"
READ_ONLY = "read-only"


class RoleTools(Struct, frozen=True):
    """The tools and groups of a role, and whether it may change anything."""

    names: tuple[str, ...]
    mode: str = FULL


ROLE_TOOLS: Mapping[str, RoleTools] = {
    AgentRole.DEV: RoleTools(("files", "git", "tests")),
    AgentRole.QA: RoleTools(("files", "tests", "http_get", "http_head")),
    AgentRole.ARCHITECT: RoleTools(("files", "git"), READ_ONLY),
    AgentRole.DEVOPS: RoleTools(("files", "git", "http")),
    AgentRole.DATA: RoleTools(("files", "tests")),
}
OTHER_ROLES = RoleTools(("files",), READ_ONLY)


class Grant(Struct, frozen=True, kw_only=True):
    """What an agent may use: names of tools and groups of its role, and those its task left.

    `narrowed` None leaves all of the role's.
    """

    role: str
    names: frozenset[str]
    narrowed: frozenset[str] | None
    read_only: bool

    def refusal(self, tool: Tool) -> str:
        """Return why the tool may not be used; empty when it may."""
        either = {tool.name, tool.group}
        if self.names.isdisjoint(either):
            return f"{tool.name} is not among the tools of the role {self.role}"
        if self.narrowed is not None and self.narrowed.isdisjoint(either):
            return f"{tool.name} is not among the tools that this task allows"
        if self.read_only and not tool.reads:
            return f"{tool.name} changes something, and this agent may only read"
        return ""


def grant(role: str, configured: RoleConfig | None, asked: Constraints) -> Grant:
    """Return what an agent of this role may use for a task that asks for this."""
    built_in = ROLE_TOOLS.get(role.upper(), OTHER_ROLES)
    given = configured or RoleConfig()
    mode = built_in.mode if given.mode == DEFAULT else given.mode
    return Grant(
        role=role,
        names=frozenset(_names(given.tools, built_in.names)),
        narrowed=None if asked.allowed_tools is None else frozenset(asked.allowed_tools),
        read_only=READ_ONLY in (mode, asked.tool_mode),
    )


def _names(given: Sequence[str], built_in: Sequence[str]) -> Sequence[str]:
    kept = [name for name in given if name != DEFAULT]
    return [*kept, *built_in] if DEFAULT in given else kept
