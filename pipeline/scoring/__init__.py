"""What `pipeline.score` does: which texts it scores, and the job."""
