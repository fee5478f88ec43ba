"""Checks of what a study leans on; every finding names its remedy."""
