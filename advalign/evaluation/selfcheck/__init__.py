"""Self-checks: whether the number an attack reports can be trusted."""
