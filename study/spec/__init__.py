"""The study file: its fields, its search space, and every mistake in it told at once. Imports no torch."""
