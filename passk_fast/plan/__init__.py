"""Estimates memory, traffic and time of a configuration on a cluster, without a GPU."""
