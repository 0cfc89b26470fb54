#include "balance.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <tuple>
#include <utility>

namespace passk {

namespace {

void add(Group& group, Items items, std::int32_t position) {
    group.cost += items[position].cost;
    group.tokens += items[position].tokens;
    group.items.push_back(position);
}

// A binary heap of groups, the least loaded on top, ties by index.
class LeastLoaded {
  public:
    LeastLoaded(const Groups& groups, Key key) : groups_(groups), key_(key), heap_(groups.size()) {
        std::iota(heap_.begin(), heap_.end(), 0);
    }

    // Index of the least loaded group with room for `tokens`, or -1.
    int find(std::int64_t tokens, std::int64_t cap) {
        if (groups_[heap_[0]].tokens <= cap - tokens) return heap_[0];
        int best = -1;
        for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
            if (groups_[g].tokens <= cap - tokens && (best < 0 || less(g, best))) best = g;
        }
        return best;
    }

    // Restores the order after `group` has grown.
    void grown(int group) {
        std::size_t at = heap_[0] == group ? 0 : std::ranges::find(heap_, group) - heap_.begin();
        for (std::size_t child = 2 * at + 1; child < heap_.size(); child = 2 * at + 1) {
            if (child + 1 < heap_.size() && less(heap_[child + 1], heap_[child])) ++child;
            if (!less(heap_[child], heap_[at])) return;
            std::swap(heap_[child], heap_[at]);
            at = child;
        }
    }

  private:
    bool less(int a, int b) const {
        if (key_ == Key::cost && groups_[a].cost != groups_[b].cost) {
            return groups_[a].cost < groups_[b].cost;
        }
        if (groups_[a].tokens != groups_[b].tokens) return groups_[a].tokens < groups_[b].tokens;
        return a < b;
    }

    const Groups& groups_;
    Key key_;
    std::vector<int> heap_;
};

// The members by descending tokens, as positions.
std::vector<std::int32_t> by_tokens(Items items, Members members) {
    std::vector<std::int32_t> order(members.begin(), members.end());
    std::ranges::stable_sort(
        order, [&](auto a, auto b) { return items[a].tokens > items[b].tokens; });
    return order;
}

void sort_members(Groups& groups) {
    for (Group& group : groups) std::ranges::sort(group.items);
}

}  // namespace

std::optional<Groups> spread(Items items, Members members, int count, std::int64_t cap, Key key) {
    Groups groups(count);
    for (Group& group : groups) group.items.reserve(members.size() / count + 8);
    std::vector<std::int32_t> sorted;
    if (key == Key::tokens) {
        sorted = by_tokens(items, members);
        members = sorted;
    }
    LeastLoaded loads(groups, key);
    for (std::int32_t position : members) {
        int group = loads.find(items[position].tokens, cap);
        if (group < 0) return std::nullopt;
        add(groups[group], items, position);
        loads.grown(group);
    }
    if (key == Key::tokens) sort_members(groups);
    return groups;
}

Groups first_fit(Items items, Members members, std::int64_t cap) {
    // A tournament tree over the room of all possible groups; the leftmost with room wins.
    std::size_t leaves = std::bit_ceil(std::max<std::size_t>(1, members.size()));
    std::vector<std::int64_t> room(2 * leaves, cap);
    Groups groups;
    for (std::int32_t position : by_tokens(items, members)) {
        std::size_t node = 1;
        while (node < leaves) {
            node = 2 * node + (room[2 * node] < items[position].tokens);
        }
        std::size_t group = node - leaves;
        if (group >= groups.size()) groups.resize(group + 1);
        add(groups[group], items, position);
        room[node] -= items[position].tokens;
        for (node /= 2; node >= 1; node /= 2) {
            room[node] = std::max(room[2 * node], room[2 * node + 1]);
        }
    }
    sort_members(groups);
    return groups;
}

double largest_cost(const Groups& groups) {
    double largest = 0;
    for (const Group& group : groups) largest = std::max(largest, group.cost);
    return largest;
}

// ---- Karmarkar and Karp --------------------------------------------------------------------

namespace {

// A part of a partial solution: its cost and its linked list of members.
struct Part {
    double cost;
    std::int32_t size;
    std::int32_t head;
    std::int32_t tail;

    // By cost, and otherwise as verl breaks ties: by members, then by the first one's place.
    bool operator<(const Part& other) const {
        return std::tie(cost, size, head) < std::tie(other.cost, other.size, other.head);
    }
};

// A partial solution: its non-empty parts in descending order. Empty parts are not stored.
struct Partial {
    std::vector<Part> parts;
    double spread;

    bool operator<(const Partial& other) const {
        if (spread != other.spread) return spread < other.spread;
        return parts[0] < other.parts[0];
    }
};

double spread_of(const std::vector<Part>& parts, std::size_t count) {
    return parts[0].cost - (parts.size() == count ? parts.back().cost : 0);
}

// The largest of one with the smallest of the other, and so on.
void merge(Partial& a, const Partial& b, std::size_t count, std::vector<std::int32_t>& next) {
    std::size_t size = a.parts.size();
    a.parts.resize(std::min(count, size + b.parts.size()), Part{0, 0, -1, -1});
    for (std::size_t i = 0; i < b.parts.size(); ++i) {
        // Part i of b meets part count - 1 - i of a, which is empty when there are not so many.
        std::size_t partner = count - 1 - i;
        std::size_t at = partner < size ? partner : a.parts.size() - 1 - i;
        Part& part = a.parts[at];
        part.cost += b.parts[i].cost;
        part.size += b.parts[i].size;
        if (part.head < 0) {
            part.head = b.parts[i].head;
        } else {
            next[part.tail] = b.parts[i].head;
        }
        part.tail = b.parts[i].tail;
    }
    std::sort(a.parts.rbegin(), a.parts.rend());
    a.spread = spread_of(a.parts, count);
}

}  // namespace

std::optional<Groups> difference(
    Items items, Members members, int count, std::int64_t cap, bool equal) {
    Groups groups(count);
    if (members.empty()) return groups;
    auto size = static_cast<std::int32_t>(members.size());
    std::vector<std::int32_t> next(members.size(), -1);
    std::vector<Partial> heap;
    std::int32_t width = equal ? count : 1;
    // Members are by descending cost: what does not fill a start is taken from the largest.
    for (std::int32_t m = 0, end = (size - 1) % width + 1; m < size; end += width) {
        Partial start{{}, 0};
        for (; m < end; ++m) start.parts.push_back(Part{items[members[m]].cost, 1, m, m});
        std::sort(start.parts.rbegin(), start.parts.rend());
        start.spread = spread_of(start.parts, count);
        heap.push_back(std::move(start));
    }
    std::make_heap(heap.begin(), heap.end());
    while (heap.size() > 1) {
        std::pop_heap(heap.begin(), heap.end());
        Partial largest = std::move(heap.back());
        heap.pop_back();
        std::pop_heap(heap.begin(), heap.end());
        merge(largest, heap.back(), count, next);
        heap.back() = std::move(largest);
        std::push_heap(heap.begin(), heap.end());
    }
    for (std::size_t p = 0; p < heap[0].parts.size(); ++p) {
        for (std::int32_t m = heap[0].parts[p].head; m >= 0; m = next[m]) {
            add(groups[p], items, members[m]);
        }
        if (groups[p].tokens > cap) return std::nullopt;
    }
    sort_members(groups);
    return groups;
}

// ---- local search --------------------------------------------------------------------------

namespace {

// What to give from one group to another: item `give`, and item `take` in return (-1: nothing).
struct Exchange {
    std::int32_t give = -1;
    std::int32_t take = -1;
    double miss = std::numeric_limits<double>::infinity();  // distance from evening out
};

// The exchange that comes nearest to evening out the two groups, found in one pass over both.
Exchange best_exchange(Items items, const Group& from, const Group& to, std::int64_t cap) {
    double gap = from.cost - to.cost;
    double least = 1e-13 * from.cost;  // below this a gain is rounding
    Exchange best;
    auto consider = [&](std::int32_t give, std::int32_t take) {
        double shift = items[give].cost - (take < 0 ? 0 : items[take].cost);
        double miss = std::abs(shift - gap / 2);
        if (miss >= best.miss || shift <= least || gap - shift <= least) return;
        std::int64_t tokens = items[give].tokens - (take < 0 ? 0 : items[take].tokens);
        if (to.tokens > cap - tokens || from.tokens > cap + tokens) return;
        best = {give, take, miss};
    };
    std::size_t j = 0;
    for (std::int32_t give : from.items) {
        consider(give, -1);
        double wanted = items[give].cost - gap / 2;
        while (j < to.items.size() && items[to.items[j]].cost > wanted) ++j;
        if (j > 0) consider(give, to.items[j - 1]);
        if (j < to.items.size()) consider(give, to.items[j]);
    }
    return best;
}

void transfer(Items items, Group& from, Group& to, std::int32_t position) {
    from.items.erase(std::ranges::lower_bound(from.items, position));
    to.items.insert(std::ranges::lower_bound(to.items, position), position);
    from.cost -= items[position].cost;
    to.cost += items[position].cost;
    from.tokens -= items[position].tokens;
    to.tokens += items[position].tokens;
}

// One exchange that lowers the costliest group; false when there is none.
bool lower_largest(Items items, Groups& groups, std::vector<int>& order, std::int64_t cap) {
    std::ranges::sort(order, {}, [&](int g) { return std::pair(groups[g].cost, g); });
    Group& from = groups[order.back()];
    if (from.items.size() < 2) return false;  // one item: whoever takes it costs as much
    for (int g : order) {
        Group& to = groups[g];
        if (to.cost >= from.cost) return false;
        Exchange found = best_exchange(items, from, to, cap);
        if (found.give < 0) continue;
        transfer(items, from, to, found.give);
        if (found.take >= 0) transfer(items, to, from, found.take);
        return true;
    }
    return false;
}

constexpr double kCloseEnough = 1e-8;  // above the even cost: no need to divide anew
constexpr std::size_t kPartners = 8;  // groups tried, the least costly first

// Divides the items of the costliest group and another's anew; false when that lowers nothing.
bool redivide_largest(
    Items items, Groups& groups, const std::vector<int>& order, std::int64_t cap) {
    Group& from = groups[order.back()];
    std::vector<std::int32_t> both;
    for (std::size_t i = 0; i < std::min(kPartners, order.size() - 1); ++i) {
        Group& to = groups[order[i]];
        both.clear();
        std::ranges::merge(from.items, to.items, std::back_inserter(both));
        std::optional<Groups> halves = difference(items, both, 2, cap);
        if (!halves || largest_cost(*halves) >= from.cost * (1 - 1e-13)) continue;
        from = std::move((*halves)[0]);
        to = std::move((*halves)[1]);
        return true;
    }
    return false;
}

}  // namespace

void refine(Items items, Groups& groups, std::int64_t cap, bool thorough) {
    if (groups.size() < 2) return;
    std::size_t members = 0;
    double total = 0;
    for (const Group& group : groups) {
        members += group.items.size();
        total += group.cost;
    }
    double even = total / static_cast<double>(groups.size()) * (1 + 1e-12);
    std::vector<int> order(groups.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t step = 0; step < members + 20 * groups.size(); ++step) {
        if (largest_cost(groups) <= even) return;
        if (lower_largest(items, groups, order, cap)) continue;
        if (!thorough || largest_cost(groups) <= even * (1 + kCloseEnough)) return;
        if (!redivide_largest(items, groups, order, cap)) return;
    }
}

}  // namespace passk
