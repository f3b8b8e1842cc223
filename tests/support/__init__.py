"""What tests share: models of a few numbers, references in plain Python, files and servers made on the spot."""
