"""Presets: each module's `get_config()` is a complete config for `--config=configs/<name>.py`."""
