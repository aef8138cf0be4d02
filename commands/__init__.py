"""The subcommands, a file for each part of the work: each parses, calls one function and prints the result.

May import every other room, but only inside a command: nothing heavier than click is loaded before a command runs.
"""
