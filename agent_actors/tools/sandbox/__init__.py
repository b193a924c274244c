"""Sandboxes: how the commands of agents are confined."""
