"""A run on paper: memory, traffic and time of a configuration on a cluster, on one CPU."""
