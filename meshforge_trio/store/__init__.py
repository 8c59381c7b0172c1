"""The event store: a port and who fills it."""
