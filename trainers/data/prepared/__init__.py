"""A dataset decoded once: its parts, its files, and how they are read again."""
