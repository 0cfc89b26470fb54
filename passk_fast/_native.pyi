"""Types of the extension that csrc/ builds."""

import numpy as np
from numpy.typing import NDArray

def plan_micro_batches(
    lengths: NDArray[np.int64],
    pairs: NDArray[np.int64],
    data_size: int,
    max_tokens: int,
    divisor: int,
    linear: float,
    quadratic: float,
) -> list[list[list[int]]]: ...
def plan_reshard(
    tensors: int,
    source: NDArray[np.int32],
    source_counts: list[int],
    source_ranks: list[list[int]],
    destination: NDArray[np.int32],
    destination_counts: list[int],
    destination_ranks: list[list[int]],
    world: int,
    element_bytes: int,
    round_bytes: int,
    rank: int,
) -> tuple[NDArray[np.int32], list[int], list[int], list[int], int]: ...
