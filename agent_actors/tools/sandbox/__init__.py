"""Sandboxes: how the commands of agents are confined.

`find_sandbox` returns the one that works on this machine, `command` is what it is asked. Each
kind (`bwrap`, `landlock`, `unconfined`) says what to show and refuse, out of what all have in
common (`places`), and has the program in `launcher` see to it, which `running` starts.
"""

from agent_actors.tools.sandbox.command import Command, Finished, Sandbox
from agent_actors.tools.sandbox.finding import find_sandbox
from agent_actors.tools.sandbox.undumpable import make_undumpable

__all__ = ["Command", "Finished", "Sandbox", "find_sandbox", "make_undumpable"]
