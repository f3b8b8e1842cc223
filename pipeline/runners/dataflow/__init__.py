"""Dataflow: its options, its accelerators, and what a job asks of it."""
