"""What is computed of generations and scores: sums that merge exactly, what shards and analyses sum up, intervals."""
