"""The names in JetStream under which peers get their tasks."""

PEER_STREAM = "PEER_TASKS"
PEER_SUBJECT = "peer.tasks"
DURABLE = "peers"
