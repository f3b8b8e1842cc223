"""Where a job runs: what each of Beam's runners needs to be there, started, built or filled in."""
