"""Servers of the Model Context Protocol, written with its SDK, for tests to speak with."""
