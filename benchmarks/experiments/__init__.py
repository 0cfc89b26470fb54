"""The papers' comparisons on small mazes: `python -m benchmarks.experiments.study --help`."""
