"""Health: what store, broker and engines are like right now, and what a person should do about it."""
