"""What `pipeline.distill` does: finds texts and weights to begin with, then trains, looks at α, and keeps the best."""
