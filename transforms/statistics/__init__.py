"""What is computed of generations and scores: intervals."""
