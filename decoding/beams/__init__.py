"""Beam search, exact and speculative."""
