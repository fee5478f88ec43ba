"""What to try and what to believe: the study service, its command line and its Python interface."""
