"""What runs inside a sandbox that judges a repository: the trusted process, and the one that runs the tests."""
