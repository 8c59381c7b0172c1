"""Planted bugs: the protocol broken in one place at a time, so that the harness shows what it can catch."""
