"""Git for agents: the real program, with nothing of a repository's own settings that runs others.

A repository that an agent works in is hostile ground: whatever tests run there can write its
`.git`. So `program` runs git on it without a network and without what could start a program, and
`exchange` reaches remotes from a repository of our own, which shares only bundles with it.
"""

from agent_actors.tools.git.local import LOCAL_TOOLS
from agent_actors.tools.git.preparation import (
    RepositoryRequest,
    prepare_repository,
    repository_request,
)
from agent_actors.tools.git.remote import REMOTE_TOOLS

GIT_TOOLS = (*LOCAL_TOOLS, *REMOTE_TOOLS)

__all__ = ["GIT_TOOLS", "RepositoryRequest", "prepare_repository", "repository_request"]
