"""Schema versions of the study store, oldest first. A released one is never edited."""
