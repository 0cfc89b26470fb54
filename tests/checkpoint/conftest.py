"""The actor tests' rank pools and model folders, for checkpoints of real actors."""

from tests.actor.conftest import folders, one_rank, two_ranks

__all__ = ["folders", "one_rank", "two_ranks"]
