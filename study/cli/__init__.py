"""The `agft` command: one module a group of commands, and the screens that they print."""
