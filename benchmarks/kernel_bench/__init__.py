"""Parts of benchmarks/kernels.py: problems, peers, measurement, plot."""
