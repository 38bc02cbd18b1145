"""A chain of look-ups with an end mark."""
