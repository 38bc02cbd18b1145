"""Sandbox backends: one file each."""
