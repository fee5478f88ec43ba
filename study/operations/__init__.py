"""Backup and restore, what garbage goes, metrics for Prometheus."""
