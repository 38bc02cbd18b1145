"""Questions with options to choose from."""
