"""Short programs with hidden tests."""
