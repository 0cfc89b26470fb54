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
