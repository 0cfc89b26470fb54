#include "reshard.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace passk {

namespace {

// Pieces of one side by tensor: (piece, part), ascending.
struct ByTensor {
    std::vector<std::int64_t> starts;
    std::vector<std::pair<std::int32_t, std::int32_t>> entries;

    ByTensor(const Side& side, std::int32_t tensors) : starts(tensors + 1), entries(side.pieces.size()) {
        for (const Piece& piece : side.pieces) ++starts[piece.tensor + 1];
        for (std::int32_t t = 0; t < tensors; ++t) starts[t + 1] += starts[t];
        std::vector<std::int64_t> at(starts.begin(), starts.end() - 1);
        for (std::size_t part = 0; part < side.ranks.size(); ++part) {
            for (auto p = side.piece_starts[part]; p < side.piece_starts[part + 1]; ++p) {
                entries[at[side.pieces[p].tensor]++] = {
                    static_cast<std::int32_t>(p), static_cast<std::int32_t>(part)};
            }
        }
    }

    auto of(std::int32_t tensor) const {
        return std::span(entries).subspan(starts[tensor], starts[tensor + 1] - starts[tensor]);
    }
};

// Who may send a cell: a rank and the piece of it that covers the cell.
struct Holder {
    std::int32_t rank, piece;
};

// A tensor cut at every border of a source piece: a cell lies inside of each piece or outside.
class Cells {
  public:
    void build(std::span<const std::pair<std::int32_t, std::int32_t>> entries, const Side& source) {
        rows.clear();
        columns.clear();
        for (auto [p, part] : entries) {
            const Piece& piece = source.pieces[p];
            rows.insert(rows.end(), {piece.r0, piece.r1});
            columns.insert(columns.end(), {piece.c0, piece.c1});
        }
        for (auto* cuts : {&rows, &columns}) {
            std::ranges::sort(*cuts);
            cuts->erase(std::ranges::unique(*cuts).begin(), cuts->end());
        }
        std::size_t count = rows.empty() ? 0 : (rows.size() - 1) * (columns.size() - 1);
        if (holders.size() < count) holders.resize(count);
        for (std::size_t i = 0; i < count; ++i) holders[i].clear();
        for (auto [p, part] : entries) add(p, source.pieces[p], source.ranks[part]);
        for (std::size_t i = 0; i < count; ++i) {
            if (!std::ranges::is_sorted(holders[i], {}, &Holder::rank)) {
                std::ranges::stable_sort(holders[i], {}, &Holder::rank);
            }
        }
    }

    static std::size_t index(const std::vector<std::int32_t>& cuts, std::int32_t at) {
        return std::ranges::upper_bound(cuts, at) - cuts.begin() - 1;
    }

    const std::vector<Holder>& at(std::size_t i, std::size_t j) const {
        return holders[i * (columns.size() - 1) + j];
    }

    std::vector<std::int32_t> rows, columns;

  private:
    void add(std::int32_t p, const Piece& piece, const std::vector<std::int32_t>& ranks) {
        for (std::size_t i = index(rows, piece.r0); rows[i] < piece.r1; ++i) {
            for (std::size_t j = index(columns, piece.c0); columns[j] < piece.c1; ++j) {
                auto& cell = holders[i * (columns.size() - 1) + j];
                for (std::int32_t rank : ranks) cell.push_back({rank, p});
            }
        }
    }

    std::vector<std::vector<Holder>> holders;
};

// Bytes by rank and round, and the first round of each rank that has room for a whole message.
class Budget {
  public:
    Budget(std::int32_t world, const Limits& limits)
        : used_(world), open_(world), full_(limits.round_bytes - limits.message_bytes) {}

    std::int32_t open(std::int32_t rank) const { return open_[rank]; }

    std::int64_t used(std::int32_t rank, std::int32_t round) const {
        return round < static_cast<std::int32_t>(used_[rank].size()) ? used_[rank][round] : 0;
    }

    void take(std::int32_t rank, std::int32_t round, std::int64_t bytes) {
        auto& rounds = used_[rank];
        if (round >= static_cast<std::int32_t>(rounds.size())) rounds.resize(round + 1);
        rounds[round] += bytes;
        while (used(rank, open_[rank]) > full_) ++open_[rank];
    }

  private:
    std::vector<std::vector<std::int64_t>> used_;
    std::vector<std::int32_t> open_;
    std::int64_t full_;
};

class Planner {
  public:
    Planner(
        const Side& source, const Side& destination, std::int32_t world, const Limits& limits,
        std::int32_t rank)
        : source_(source),
          destination_(destination),
          limits_(limits),
          rank_(rank),
          world_(world),
          out_(world, limits),
          in_(world, limits) {
        plan.sent.resize(world);
        plan.received.resize(world);
        plan.kept.resize(world);
    }

    void tensor(
        std::int32_t t, const ByTensor& sources, const ByTensor& destinations) {
        auto wanted = destinations.of(t);
        if (wanted.empty()) return;
        cells_.build(sources.of(t), source_);
        for (auto [p, part] : wanted) {
            const Piece& piece = destination_.pieces[p];
            if (piece.r0 >= piece.r1 || piece.c0 >= piece.c1) continue;
            if (!within(cells_.rows, piece.r0, piece.r1) ||
                !within(cells_.columns, piece.c0, piece.c1)) {
                missing(t);
            }
            for (std::int32_t dst : destination_.ranks[part]) fetch(t, piece, dst);
        }
    }

    ReshardPlan plan;

  private:
    static bool within(const std::vector<std::int32_t>& cuts, std::int32_t a, std::int32_t b) {
        return !cuts.empty() && cuts.front() <= a && b <= cuts.back();
    }

    [[noreturn]] static void missing(std::int32_t t) {
        throw std::invalid_argument("tensor " + std::to_string(t) + " has no complete holder");
    }

    void fetch(std::int32_t t, const Piece& piece, std::int32_t dst) {
        for (auto i = Cells::index(cells_.rows, piece.r0); cells_.rows[i] < piece.r1; ++i) {
            for (auto j = Cells::index(cells_.columns, piece.c0); cells_.columns[j] < piece.c1; ++j) {
                std::int32_t r0 = std::max(piece.r0, cells_.rows[i]);
                std::int32_t r1 = std::min(piece.r1, cells_.rows[i + 1]);
                std::int32_t c0 = std::max(piece.c0, cells_.columns[j]);
                std::int32_t c1 = std::min(piece.c1, cells_.columns[j + 1]);
                cell(t, piece, dst, cells_.at(i, j), {r0, r1, c0, c1});
            }
        }
    }

    struct Rectangle {
        std::int32_t r0, r1, c0, c1;
    };

    void cell(
        std::int32_t t, const Piece& piece, std::int32_t dst, const std::vector<Holder>& holders,
        Rectangle area) {
        if (holders.empty()) missing(t);
        auto own = std::ranges::lower_bound(holders, dst, {}, &Holder::rank);
        std::int64_t row_bytes = (area.c1 - area.c0) * limits_.element_bytes;
        if (own != holders.end() && own->rank == dst) {
            plan.kept[dst] += row_bytes * (area.r1 - area.r0);
            emit(t, piece, dst, *own, area, -1);
            return;
        }
        auto step = static_cast<std::int32_t>(std::clamp<std::int64_t>(
            limits_.message_bytes / row_bytes, 1, area.r1 - area.r0));
        for (std::int32_t r = area.r0; r < area.r1; r += step) {
            std::int32_t end = std::min(area.r1, r + step);
            std::int64_t bytes = row_bytes * (end - r);
            const Holder& holder = least_loaded(holders, dst);
            plan.sent[holder.rank] += bytes;
            plan.received[dst] += bytes;
            std::int32_t round = reserve(holder.rank, dst, bytes);
            emit(t, piece, dst, holder, {r, end, area.c0, area.c1}, round);
        }
    }

    // Ties go to the first holder after `dst`, so that equal receivers spread over equal senders.
    const Holder& least_loaded(const std::vector<Holder>& holders, std::int32_t dst) const {
        const Holder* best = nullptr;
        std::int64_t least = 0;
        std::int32_t distance = 0;
        for (const Holder& holder : holders) {
            std::int64_t load = plan.sent[holder.rank];
            if (best && load > least) continue;
            std::int32_t away = holder.rank > dst ? holder.rank - dst : holder.rank - dst + world_;
            if (best && load == least && away >= distance) continue;
            best = &holder;
            least = load;
            distance = away;
        }
        return *best;
    }

    // The first round in which both ranks have room; one message larger than a round has its own.
    std::int32_t reserve(std::int32_t src, std::int32_t dst, std::int64_t bytes) {
        auto fits = [&](const Budget& budget, std::int32_t rank, std::int32_t round) {
            std::int64_t used = budget.used(rank, round);
            return used == 0 || used + bytes <= limits_.round_bytes;
        };
        std::int32_t round = std::max(out_.open(src), in_.open(dst));
        while (!fits(out_, src, round) || !fits(in_, dst, round)) ++round;
        out_.take(src, round, bytes);
        in_.take(dst, round, bytes);
        plan.rounds = std::max(plan.rounds, round + 1);
        return round;
    }

    void emit(
        std::int32_t t, const Piece& piece, std::int32_t dst, const Holder& holder, Rectangle area,
        std::int32_t round) {
        if (rank_ >= 0 && rank_ != dst && rank_ != holder.rank) return;
        const Piece& from = source_.pieces[holder.piece];
        plan.transfers.push_back(
            {round, holder.rank, dst, t, from.param, from.row + area.r0 - from.r0,
             from.col + area.c0 - from.c0, piece.param, piece.row + area.r0 - piece.r0,
             piece.col + area.c0 - piece.c0, area.r1 - area.r0, area.c1 - area.c0});
    }

    const Side& source_;
    const Side& destination_;
    Limits limits_;
    std::int32_t rank_;
    std::int32_t world_;
    Budget out_, in_;
    Cells cells_;
};

}  // namespace

ReshardPlan plan_reshard(
    std::int32_t tensors, const Side& source, const Side& destination, std::int32_t world,
    const Limits& limits, std::int32_t rank) {
    ByTensor sources(source, tensors), destinations(destination, tensors);
    Planner planner(source, destination, world, limits, rank);
    for (std::int32_t t = 0; t < tensors; ++t) planner.tensor(t, sources, destinations);
    return std::move(planner.plan);
}

}  // namespace passk
