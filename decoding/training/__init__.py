"""Training a draft for acceptance: distillation from the target's distributions, which the paper leaves open (section 6)."""
