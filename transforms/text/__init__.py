"""What `transforms.tokenize` and `transforms.chat` load: vocabularies of every kind of file, and chat templates."""
