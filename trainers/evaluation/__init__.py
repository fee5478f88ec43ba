"""Accuracy, clean and under attack: one engine, its records, checks of it on itself."""
