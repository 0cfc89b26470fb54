// passk_fast._native: the Python face of csrc. Computes without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "micro_batches.hpp"

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

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Balancing, written in C++; see csrc/.";
    m.def(
        "plan_micro_batches", &plan_micro_batches, py::arg("lengths"), py::arg("pairs"),
        py::arg("data_size"), py::arg("max_tokens"), py::arg("divisor"), py::arg("linear"),
        py::arg("quadratic"),
        "Indices by [data rank][micro-batch]; see passk_fast.packing.plan.");
}
