// passk_fast._native: the Python face of csrc. Computes without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "micro_batches.hpp"
#include "reshard.hpp"

namespace py = pybind11;

namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 62;

using Integers = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

std::vector<passk::Item> checked_items(
    const Integers& lengths, const Integers& pairs, std::int64_t cap, double linear,
    double quadratic) {
    auto tokens = lengths.unchecked<1>();
    auto squares = pairs.unchecked<1>();
    if (squares.shape(0) != tokens.shape(0)) {
        throw std::invalid_argument(
            std::to_string(squares.shape(0)) + " pairs for " + std::to_string(tokens.shape(0)) +
            " lengths");
    }
    std::vector<passk::Item> items(tokens.shape(0));
    std::int64_t total = 0;
    for (py::ssize_t i = 0; i < tokens.shape(0); ++i) {
        if (tokens(i) < 0 || tokens(i) > cap) {
            throw std::invalid_argument(
                "sequence " + std::to_string(i) + " of " + std::to_string(tokens(i)) + " tokens " +
                (tokens(i) < 0 ? "is shorter than nothing"
                               : "exceeds max_tokens = " + std::to_string(cap)));
        }
        if (tokens(i) > kMostTokens - total) {
            throw std::invalid_argument("the lengths add up to more than 2^62 tokens");
        }
        total += tokens(i);
        double cost = linear * static_cast<double>(tokens(i)) +
                      quadratic * static_cast<double>(squares(i));
        if (!std::isfinite(cost) || cost < 0) {
            throw std::invalid_argument(
                "sequence " + std::to_string(i) + " costs " + std::to_string(cost) +
                "; a cost must be finite and not negative");
        }
        items[i] = {cost, tokens(i), static_cast<std::int32_t>(i)};
    }
    return items;
}

passk::MicroBatches plan_micro_batches(
    const Integers& lengths, const Integers& pairs, int ranks, std::int64_t cap,
    std::int64_t divisor, double linear, double quadratic) {
    if (ranks < 1) throw std::invalid_argument("data_size = " + std::to_string(ranks) + " < 1");
    if (divisor < 1) throw std::invalid_argument("divisor = " + std::to_string(divisor) + " < 1");
    if (cap < 1) throw std::invalid_argument("max_tokens = " + std::to_string(cap) + " < 1");
    auto items = checked_items(lengths, pairs, cap, linear, quadratic);
    py::gil_scoped_release release;
    return passk::plan_micro_batches(std::move(items), ranks, cap, divisor);
}

using Table = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Ranks = std::vector<std::vector<std::int32_t>>;

// One side of a resharding, checked: every index is in range and every rectangle has a place.
passk::Side checked_side(
    const Table& pieces, const std::vector<std::int64_t>& counts, const Ranks& ranks,
    std::int32_t tensors, std::int32_t world) {
    if (pieces.ndim() != 2 || pieces.shape(1) != 8 || counts.size() != ranks.size()) {
        throw std::invalid_argument("pieces must be [n, 8] with one count and rank list a part");
    }
    auto count = static_cast<std::size_t>(pieces.shape(0));
    passk::Side side{{reinterpret_cast<const passk::Piece*>(pieces.data()), count}, {0}, ranks};
    for (std::int64_t n : counts) side.piece_starts.push_back(side.piece_starts.back() + n);
    if (side.piece_starts.back() != static_cast<std::int64_t>(count)) {
        throw std::invalid_argument("the counts of the parts do not add up to the pieces");
    }
    for (const passk::Piece& p : side.pieces) {
        if (p.tensor < 0 || p.tensor >= tensors || p.r0 < 0 || p.c0 < 0 || p.r1 < p.r0 ||
            p.c1 < p.c0 || p.row < 0 || p.col < 0) {
            throw std::invalid_argument("a piece of tensor " + std::to_string(p.tensor) + " of " +
                                        std::to_string(tensors) + " is no rectangle");
        }
    }
    for (auto& part : side.ranks) {
        std::ranges::sort(part);
        if (!part.empty() && (part.front() < 0 || part.back() >= world)) {
            throw std::invalid_argument("a part has a rank outside of the world");
        }
    }
    return side;
}

py::tuple plan_reshard(
    std::int32_t tensors, const Table& source, const std::vector<std::int64_t>& source_counts,
    const Ranks& source_ranks, const Table& destination,
    const std::vector<std::int64_t>& destination_counts, const Ranks& destination_ranks,
    std::int32_t world, std::int64_t element_bytes, std::int64_t round_bytes, std::int32_t rank) {
    if (element_bytes < 1 || round_bytes < 1) {
        throw std::invalid_argument("element_bytes and round_bytes must be at least 1");
    }
    auto from = checked_side(source, source_counts, source_ranks, tensors, world);
    auto to = checked_side(destination, destination_counts, destination_ranks, tensors, world);
    passk::Limits limits{element_bytes, round_bytes, std::max<std::int64_t>(1, round_bytes / 8)};
    auto plan = std::make_unique<passk::ReshardPlan>();
    {
        py::gil_scoped_release release;
        *plan = passk::plan_reshard(tensors, from, to, world, limits, rank);
    }
    auto sent = plan->sent, received = plan->received, kept = plan->kept;
    std::int32_t rounds = plan->rounds;
    auto rows = static_cast<py::ssize_t>(plan->transfers.size());
    auto* data = reinterpret_cast<std::int32_t*>(plan->transfers.data());
    py::capsule owner(plan.release(), [](void* p) { delete static_cast<passk::ReshardPlan*>(p); });
    py::array_t<std::int32_t> transfers({rows, py::ssize_t{12}}, data, owner);
    return py::make_tuple(transfers, sent, received, kept, rounds);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Balancing and reshard planning, written in C++; see csrc/.";
    m.def(
        "plan_micro_batches", &plan_micro_batches, py::arg("lengths"), py::arg("pairs"),
        py::arg("data_size"), py::arg("max_tokens"), py::arg("divisor"), py::arg("linear"),
        py::arg("quadratic"),
        "Indices by [data rank][micro-batch]; see passk_fast.data.packing.plan.");
    m.def(
        "plan_reshard", &plan_reshard, py::arg("tensors"), py::arg("source"),
        py::arg("source_counts"), py::arg("source_ranks"), py::arg("destination"),
        py::arg("destination_counts"), py::arg("destination_ranks"), py::arg("world"),
        py::arg("element_bytes"), py::arg("round_bytes"), py::arg("rank"),
        "(transfers [n, 12], bytes sent, received and kept by rank, rounds); see "
        "passk_fast.weights.reshard.");
}
