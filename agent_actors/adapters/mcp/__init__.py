"""Model Context Protocol servers as tools: databases, containers, whatever else speaks it.

`servers` keeps a `session` with each server that is `configured`, over `stdio` (a program, read
by `lines`, under the eyes of `guard`) or `http`. Each `offer` of a server becomes a `tool`, named
by `naming`, whose `arguments` are checked and whose `content` is made text. The SDK is an optional
package, imported only where servers are configured.
"""

from agent_actors.adapters.mcp.servers import McpServers

__all__ = ["McpServers"]
