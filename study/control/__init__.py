"""A study steered from any terminal: pause, resume, extend, stop, delete, submit, logs."""
