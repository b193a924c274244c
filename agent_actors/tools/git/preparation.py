"""The repository that a task finds in its workspace: a fresh one, or a clone."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.errors import InvalidTask, ToolError, ToolRefused, WorkspaceUnavailable
from agent_actors.tools.git.names import ref_name
from agent_actors.tools.git.program import initialise
from agent_actors.tools.git.remote import INITIAL_BRANCH, RefMissing, clone
from agent_actors.tools.git.remotes import allowed_remote
from agent_actors.tools.registry import Surroundings

FIELD = "constraints.workspace"


class RepositoryRequest(Struct, frozen=True, kw_only=True):
    """What `constraints.workspace` asks for; `ref` empty is the default branch."""

    repo: str
    ref: str = ""


def repository_request(workspace: Mapping[str, Any] | None) -> RepositoryRequest | None:
    """Return which repository the task wants; None: an empty one.

    Raises InvalidTask, naming the field. Keys that it does not know are left alone.
    """
    if not workspace:
        return None
    try:
        request = msgspec.convert(workspace, RepositoryRequest)
    except msgspec.ValidationError as error:
        raise InvalidTask(f'{FIELD}: {error}; it is {{"repo": URL, "ref": NAME}}') from None
    if request.ref:
        try:
            ref_name(request.ref)
        except ToolError as error:
            raise InvalidTask(f"{FIELD}.ref: {error}") from None
    return request


async def prepare_repository(
    surroundings: Surroundings, request: RepositoryRequest | None
) -> dict[str, Any]:
    """Make the empty workspace a git repository; return, of a clone, `repo`, `ref` and `commit`.

    Without a sandbox or git the workspace stays a plain folder, but a clone is refused. Raises
    InvalidTask when the task asks for what is not allowed or not there, WorkspaceUnavailable
    when the remote, or what it takes to reach it, is away.
    """
    if request is None:
        return await _fresh(surroundings)
    try:
        remote = allowed_remote(request.repo, surroundings.settings.git.remotes)
    except ToolRefused as error:
        raise InvalidTask(f"{FIELD}.repo: {error}") from None
    try:
        commit = await clone(surroundings, remote, request.ref)
    except RefMissing as error:
        raise InvalidTask(f"{FIELD}.ref: {error}") from None
    except ToolError as error:
        raise WorkspaceUnavailable(f"{FIELD}: {remote.url} cannot be cloned: {error}") from error
    return {"repo": remote.url, "ref": request.ref, "commit": commit}


async def _fresh(surroundings: Surroundings) -> dict[str, Any]:
    if surroundings.sandbox is None:
        return {}
    try:
        await initialise(surroundings, INITIAL_BRANCH)
    except ToolError as error:
        return {"git": f"no repository: {error}"}
    return {"branch": INITIAL_BRANCH}
