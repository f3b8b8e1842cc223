"""Engines to run on: what each needs to be there, started or built by a command."""
