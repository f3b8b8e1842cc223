"""Model directories, commands and finished folders are those of the jobs' tests."""

from tests.pipeline.conftest import command, finished_run, models, sentences, spiece_model

__all__ = ["command", "finished_run", "models", "sentences", "spiece_model"]
