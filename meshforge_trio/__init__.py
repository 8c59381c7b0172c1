"""Event-sourced agents on NATS JetStream whose effects happen exactly once."""
