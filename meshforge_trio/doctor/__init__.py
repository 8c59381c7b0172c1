"""Doctor: settings, store, server and streams held against what the guarantees need."""
