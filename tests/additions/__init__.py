"""Modules as somebody else's package may have them: each adds one thing by name, in at most forty lines."""
