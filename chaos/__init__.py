"""The harness: kills real processes at named points of the protocol and judges what is left."""
