"""What the server says when no script does: proposals, JSON to a schema, work with tools."""
