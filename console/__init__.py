"""The terminal: progress on stderr, and plain tables. Every room may use it.

May import the standard library and rich.
"""
