// Balancing items over groups: the largest group cost as small as we can make it, tokens capped.
//
// An item is a sequence (or a unit with a shared prompt, or a whole micro-batch). Every function
// here reads items sorted by descending (cost, tokens) and depends on nothing else, so that the
// costs of the groups do not depend on the order in which the caller lists the items.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace passk {

constexpr std::int64_t kNoCap = std::numeric_limits<std::int64_t>::max();

struct Item {
    double cost;
    std::int64_t tokens;
    std::int32_t id;  // the caller's index
};

struct Group {
    double cost = 0;
    std::int64_t tokens = 0;
    std::vector<std::int32_t> items;  // positions in the sorted items, ascending
};

using Groups = std::vector<Group>;
using Items = std::span<const Item>;
using Members = std::span<const std::int32_t>;  // positions in the sorted items, ascending

enum class Key { cost, tokens };

// Largest first to the group with the least cost (or tokens) that has room; none if one has not.
std::optional<Groups> spread(Items items, Members members, int count, std::int64_t cap, Key key);

// Largest first to the first group with room: few groups rather than even ones.
Groups first_fit(Items items, Members members, std::int64_t cap);

// Largest differencing method of Karmarkar and Karp; none if a group would exceed the cap. With
// `equal` it begins from sets of `count` neighbours, an item a group: groups of equal size.
std::optional<Groups> difference(
    Items items, Members members, int count, std::int64_t cap, bool equal = false);

// Lowers the largest cost by moves and swaps of single items until none helps; `thorough`, also by
// differencing the items of two groups anew. The largest cost never rises, no group exceeds the cap.
void refine(Items items, Groups& groups, std::int64_t cap, bool thorough);

double largest_cost(const Groups& groups);

}  // namespace passk
