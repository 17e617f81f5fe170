"""Stand in for the hub in tests: a local server, and small repositories with published layouts."""
