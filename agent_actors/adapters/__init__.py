"""The outside: NATS, the model server, Ray. Each library is known to its own file only."""
