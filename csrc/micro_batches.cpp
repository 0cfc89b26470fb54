#include "micro_batches.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

namespace passk {

namespace {

constexpr std::int64_t kAttempts = 4;  // micro-batch counts tried before falling back to first fit

// Above this many items per group, exchanges alone come within 1e-5 of even: differencing comes nearer
// still, but takes longer than all the rest.
constexpr std::size_t kDifferenceItems = 32;

// Up to this many items in all, nothing is left untried.
constexpr std::size_t kFewItems = 8192;

std::int64_t round_up(std::int64_t value, std::int64_t divisor) {
    return (value + divisor - 1) / divisor * divisor;
}

std::int64_t times(std::int64_t cap, std::int64_t count) {
    return cap > kNoCap / count ? kNoCap : cap * count;
}

bool differenced(Items items, Members members, int count) {
    return items.size() <= kFewItems || members.size() <= kDifferenceItems * count;
}

// The members over `count` groups as evenly as we can; none if the cap could not be kept.
std::optional<Groups> even(Items items, Members members, int count, std::int64_t cap) {
    bool thorough = items.size() <= kFewItems;
    std::optional<Groups> best = spread(items, members, count, cap, Key::cost);
    if (best) refine(items, *best, cap, thorough);
    for (bool equal : {false, true}) {
        if (equal ? !thorough : !differenced(items, members, count)) continue;
        std::optional<Groups> other = difference(items, members, count, cap, equal);
        if (other) refine(items, *other, cap, thorough);
        if (other && (!best || largest_cost(*other) < largest_cost(*best))) best = std::move(other);
    }
    if (best) return best;
    best = spread(items, members, count, cap, Key::tokens);
    if (!best) {
        best = first_fit(items, members, cap);
        if (static_cast<int>(best->size()) > count) return std::nullopt;
        best->resize(count);
    }
    refine(items, *best, cap, thorough);
    return best;
}

using Plan = std::vector<Groups>;  // micro-batches of each rank

// Even micro-batches in each rank; none if a rank cannot be packed.
std::optional<Plan> packed(
    Items items, const std::optional<Groups>& ranks, int count, std::int64_t cap) {
    if (!ranks) return std::nullopt;
    Plan plan;
    for (const Group& rank : *ranks) {
        std::optional<Groups> bins = even(items, rank.items, count, cap);
        if (!bins) return std::nullopt;
        plan.push_back(std::move(*bins));
    }
    return plan;
}

double largest_bin(const Plan& plan) {
    double largest = 0;
    for (const Groups& bins : plan) largest = std::max(largest, largest_cost(bins));
    return largest;
}

constexpr double kLevel = 1 + 1e-12;  // above this a ratio of costs is no rounding

// Costliest rank and costliest micro-batch.
struct Largest {
    double rank = std::numeric_limits<double>::infinity();
    double bin = std::numeric_limits<double>::infinity();

    // The larger of the two ratios to `other`.
    double over(const Largest& other) const { return std::max(rank / other.rank, bin / other.bin); }
};

// What differencing alone comes to on both levels, the better for ranks and for micro-batches of
// its two ways to begin: what other trainers do.
Largest differenced_alone(Items items, Members all, int ranks, int count) {
    Largest least;
    for (bool equal : {false, true}) {
        Groups outer = *difference(items, all, ranks, kNoCap, equal);
        Plan plan;
        for (const Group& rank : outer) {
            plan.push_back(*difference(items, rank.items, count, kNoCap));
        }
        least.rank = std::min(least.rank, largest_cost(outer));
        least.bin = std::min(least.bin, largest_bin(plan));
    }
    return least;
}

// Even ranks, then even micro-batches in each.
std::optional<Plan> two_levels(Items items, Members all, int ranks, int count, std::int64_t cap) {
    std::int64_t rank_cap = times(cap, count);
    std::optional<Groups> outer = even(items, all, ranks, rank_cap);
    std::optional<Plan> best = packed(items, outer, count, cap);
    if (ranks > 1 && items.size() <= kFewItems) {
        // The most even ranks need not be those that pack best: others are tried until neither
        // ranks nor micro-batches are less even than by differencing alone.
        Largest least = differenced_alone(items, all, ranks, count);
        double over = best ? Largest{largest_cost(*outer), largest_bin(*best)}.over(least)
                           : std::numeric_limits<double>::infinity();
        // Refined, then as they are; each from single items and from sets of equal size.
        for (int way = 0; way < 4 && over > kLevel; ++way) {
            std::optional<Groups> ranked = difference(items, all, ranks, rank_cap, way % 2);
            if (ranked && way < 2) refine(items, *ranked, rank_cap, true);
            std::optional<Plan> other = packed(items, ranked, count, cap);
            if (!other) continue;
            double its = Largest{largest_cost(*ranked), largest_bin(*other)}.over(least);
            if (!best || its < over) {
                over = its;
                best = std::move(other);
            }
        }
    }
    if (best) return best;
    // Ranks of even cost may hold too many tokens to pack: even tokens leave more room.
    return packed(items, spread(items, all, ranks, rank_cap, Key::tokens), count, cap);
}

// Sorts micro-batches as items of one token each, so that a cap on tokens is one on their number.
std::vector<Item> as_items(const Groups& bins) {
    std::vector<Item> items;
    for (std::size_t b = 0; b < bins.size(); ++b) {
        items.push_back({bins[b].cost, 1, static_cast<std::int32_t>(b)});
    }
    std::ranges::stable_sort(items, std::greater<>{}, &Item::cost);
    return items;
}

std::vector<std::int32_t> positions(std::size_t size) {
    std::vector<std::int32_t> all(size);
    std::iota(all.begin(), all.end(), 0);
    return all;
}

// Full micro-batches dealt out to the ranks: for limits too tight to pack rank by rank.
Plan from_first_fit(Items items, Groups bins, int ranks, int count, std::int64_t cap) {
    std::vector<Item> whole = as_items(bins);
    Groups dealt = *spread(whole, positions(whole.size()), ranks, count, Key::cost);
    refine(whole, dealt, count, true);
    Plan plan;
    for (const Group& rank : dealt) {
        Groups mine;
        for (std::int32_t position : rank.items) mine.push_back(std::move(bins[whole[position].id]));
        mine.resize(count);
        refine(items, mine, cap, true);
        plan.push_back(std::move(mine));
    }
    return plan;
}

Plan make_plan(Items items, int ranks, std::int64_t cap, std::int64_t divisor) {
    std::vector<std::int32_t> all = positions(items.size());
    Groups fitted = first_fit(items, all, cap);
    double tokens = 0;
    std::int64_t wide = 0;  // no two of these share a micro-batch
    for (const Item& item : items) {
        tokens += static_cast<double>(item.tokens);
        wide += item.tokens > cap / 2;
    }
    auto per_rank = [&](std::int64_t bins) {
        return round_up(std::max<std::int64_t>(1, round_up(bins, ranks) / ranks), divisor);
    };
    auto enough = per_rank(static_cast<std::int64_t>(fitted.size()));
    auto least = static_cast<std::int64_t>(
        std::ceil(tokens / static_cast<double>(cap) * (1 - 1e-12)));
    least = std::min(enough, per_rank(std::max(least, wide)));
    for (std::int64_t i = 0; i < kAttempts && least + i * divisor < enough; ++i) {
        std::int64_t count = least + i * divisor;
        if (auto plan = two_levels(items, all, ranks, static_cast<int>(count), cap)) return *plan;
    }
    int count = static_cast<int>(enough);
    if (auto plan = two_levels(items, all, ranks, count, cap)) return *plan;
    return from_first_fit(items, std::move(fitted), ranks, count, cap);
}

}  // namespace

MicroBatches plan_micro_batches(
    std::vector<Item> items, int ranks, std::int64_t cap, std::int64_t divisor) {
    std::ranges::sort(items, [](const Item& a, const Item& b) {
        return std::tie(b.cost, b.tokens, a.id) < std::tie(a.cost, a.tokens, b.id);
    });
    Plan plan = make_plan(items, ranks, cap, divisor);
    MicroBatches out(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
        std::ranges::stable_sort(plan[rank], std::greater<>{}, &Group::cost);
        for (const Group& bin : plan[rank]) {
            std::vector<std::int32_t>& ids = out[rank].emplace_back();
            ids.reserve(bin.items.size());
            for (std::int32_t position : bin.items) ids.push_back(items[position].id);
            std::ranges::sort(ids);
        }
    }
    return out;
}

}  // namespace passk
