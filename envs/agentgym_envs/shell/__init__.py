"""Requests at a shell, judged by what became of the files and by what was answered."""
