"""A study as a page and as pictures, drawn from one typed content."""
