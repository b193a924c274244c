"""NATS JetStream: the connection, what lies in it, and the ports that it implements."""
