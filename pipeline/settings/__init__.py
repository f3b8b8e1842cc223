"""What a job is told: a config file and its overrides as frozen dataclasses, or one clear message. Imports nothing heavy."""

from pipeline.settings.command_line import (
    CommandLine,
    absolute,
    draft_path,
    help_text,
    parse_command_line,
    refuse_placeholders,
    resolve_paths,
)
from pipeline.settings.flags import version_text
from pipeline.settings.sections import InputConfig, JobConfig, ModelConfig, ScoreConfig, ShardsConfig
from pipeline.settings.typed import ConfigError, build

__all__ = [
    "CommandLine",
    "ConfigError",
    "InputConfig",
    "JobConfig",
    "ModelConfig",
    "ScoreConfig",
    "ShardsConfig",
    "absolute",
    "build",
    "draft_path",
    "help_text",
    "parse_command_line",
    "refuse_placeholders",
    "resolve_paths",
    "version_text",
]
