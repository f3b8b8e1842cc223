"""The version of SpecBeam: read by the build, recorded in every run's manifest and part of its fingerprint."""

__version__ = "0.1.0"
