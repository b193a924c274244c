"""What `up` starts when nothing is configured: a NATS server and a simulated model server."""
