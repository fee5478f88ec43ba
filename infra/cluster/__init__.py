"""Ray: connecting, jobs, what a node must have."""
