"""Programs with a bug, and tests that a repair must pass."""
