"""Side-by-side measurements against other systems; never part of the test run."""
