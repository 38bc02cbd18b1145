"""Environments shipped with agentgym."""
