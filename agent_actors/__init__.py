"""AI-agent tasks as a long-lived service on Ray."""

__version__ = "0.1.0"
