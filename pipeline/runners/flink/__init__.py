"""Flink: a cluster on this machine, the jars that it runs from, what a job needs of it, and how a job gets there."""
