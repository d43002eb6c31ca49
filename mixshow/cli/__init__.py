"""The command line: a table from command to recipe."""
