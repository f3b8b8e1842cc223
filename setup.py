"""Packaging entry point; Dataflow's --setup_file needs a setup.py. Everything is declared in pyproject.toml."""
from setuptools import setup

setup()
