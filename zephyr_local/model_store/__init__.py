"""Models by name: found where they lie, pulled whole or not at all, told where they are from."""
