"""How a job is launched: what it answers at once, what it says while it runs, and how it ends."""
