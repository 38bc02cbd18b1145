"""Sums of the third-party package reasoning-gym, solved call by call."""
