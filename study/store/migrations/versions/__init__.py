"""The schema versions themselves, one file each."""
