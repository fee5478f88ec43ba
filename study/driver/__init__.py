"""The process that owns the lease of a study and runs its trials."""
