"""What `pipeline.plan` is made of: chips, what a compiled program does, and how long its work takes at least."""
