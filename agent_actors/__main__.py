"""`python -m agent_actors` is the same as the command `agent-actors`."""

from agent_actors.cli import main

if __name__ == "__main__":
    main()
