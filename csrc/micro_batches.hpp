// Sequences -> data-parallel ranks -> micro-batches.
#pragma once

#include <cstdint>
#include <vector>

#include "balance.hpp"

namespace passk {

// Ids of items by [rank][micro-batch].
using MicroBatches = std::vector<std::vector<std::vector<std::int32_t>>>;

// All ranks get the same number of micro-batches, a multiple of `divisor`, as few as we can make
// them; none exceeds `cap` tokens. Ranks are balanced first, then the micro-batches of each.
// Micro-batches come in descending cost, so that the j-th ones of all ranks are alike.
// Expects ranks, divisor >= 1 and 0 <= tokens <= cap for every item.
MicroBatches plan_micro_batches(
    std::vector<Item> items, int ranks, std::int64_t cap, std::int64_t divisor);

}  // namespace passk
