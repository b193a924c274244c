"""What an agent can do beside talking: files, git, test runners, HTTP, and MCP servers."""
