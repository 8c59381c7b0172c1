"""Scenarios a person can run and read."""
