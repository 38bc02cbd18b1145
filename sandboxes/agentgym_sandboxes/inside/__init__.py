"""What runs inside a sandbox. Its sources are sent there; see agent.py."""
