"""Keep the service's own process from being looked into by others of the same user."""

from agent_actors.tools.sandbox.launcher.system import PR_SET_DUMPABLE, prctl


def make_undumpable() -> None:
    """Close /proc/<pid>/environ, mem and the like of this process, and tracing it, to its user.

    Its children are not affected once they have become another program. Raises OSError.
    """
    prctl(PR_SET_DUMPABLE, 0)
