"""The broker: a port and who fills it."""
