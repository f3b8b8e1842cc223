"""Beam transforms of a decoding job: read and tokenise work shards, decode them, commit them, add up what they did."""

from transforms.decode import DecodeFailure, Prompt, SpeculativeModelHandler

__all__ = ["DecodeFailure", "Prompt", "SpeculativeModelHandler"]
