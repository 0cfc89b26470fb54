// Which rectangles of which parameter every rank keeps, sends and receives when weights move from
// one mesh to another.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace passk {

// A rectangle of a full tensor, [r0, r1) x [c0, c1), and where it lies in a parameter.
struct Piece {
    std::int32_t tensor;
    std::int32_t param;
    std::int32_t r0, r1, c0, c1;
    std::int32_t row, col;
};

// One side: parts, each a list of pieces that all ranks of the part hold.
struct Side {
    std::span<const Piece> pieces;
    std::vector<std::int64_t> piece_starts;       // of each part, and the end
    std::vector<std::vector<std::int32_t>> ranks;  // of each part, ascending
};

struct Limits {
    std::int64_t element_bytes;
    std::int64_t round_bytes;    // that a rank sends at most, and receives at most, in one round
    std::int64_t message_bytes;  // above it a rectangle is cut, row by row if need be
};

// A rectangle that moves; src == dst for one that is kept. 12 columns of int32.
struct Transfer {
    std::int32_t round, src, dst, tensor;
    std::int32_t src_param, src_row, src_col;
    std::int32_t dst_param, dst_row, dst_col;
    std::int32_t rows, cols;
};

struct ReshardPlan {
    std::vector<Transfer> transfers;  // those of the rank asked for, or all; order is agreed
    std::vector<std::int64_t> sent, received, kept;  // bytes by rank
    std::int32_t rounds = 0;
};

// Every destination byte comes from a rank that holds it: from the same rank if it does, else from
// the holder that has sent least so far. Deterministic, so that all ranks agree. `rank` -1: all.
// Throws std::invalid_argument naming a tensor (by index) that no source holds completely.
ReshardPlan plan_reshard(
    std::int32_t tensors, const Side& source, const Side& destination, std::int32_t world,
    const Limits& limits, std::int32_t rank);

}  // namespace passk
