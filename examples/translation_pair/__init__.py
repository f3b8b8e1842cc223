"""What `examples/train_pair.py` trains: its texts, its models, and how good they are."""
