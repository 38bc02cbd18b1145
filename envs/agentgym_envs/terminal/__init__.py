"""Tasks in a terminal, graded in their own container."""
