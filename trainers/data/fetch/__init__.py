"""A dataset's own files, from the web to a folder."""
