"""What `pipeline.benchmark` is made of: what is compared, on which inputs, running it, and what is told of it."""
