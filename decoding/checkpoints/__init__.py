"""Reading checkpoints: `inspect_checkpoint` looks at a few kilobytes, `load_model` reads the weights."""

from decoding.checkpoints.load import CheckpointInfo, find_checkpoint, inspect_checkpoint, load_model
from decoding.checkpoints.storage import CheckpointError

__all__ = ["CheckpointError", "CheckpointInfo", "find_checkpoint", "inspect_checkpoint", "load_model"]
