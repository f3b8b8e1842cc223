"""SpecBeam's jobs, one module each: `python -m pipeline.<job> --config=configs/<name>.py --output=...`."""
