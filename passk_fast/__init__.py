"""passk_fast: a trainer for large language models with Pass@k advantages."""

__version__ = "0.1.0"
