"""A package of other people: one entry of every kind of table, each in a file of its own."""
