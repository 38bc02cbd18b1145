"""The acceptance runs: one function each, one module per kind of environment."""
