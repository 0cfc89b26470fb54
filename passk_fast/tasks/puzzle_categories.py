"""The seven categories of Enigmata (arXiv 2508.10751, appendix) and reasoning-gym's generators."""

from __future__ import annotations

_TABLE = """
crypto: caesar_cipher cryptarithm emoji_mystery figlet_font isomorphic_strings letter_jumble
    ransom_note
arithmetic: advanced_geometry base_conversion basic_arithmetic bitwise_arithmetic
    calendar_arithmetic chain_sum coin_flip complex_arithmetic count_bits count_primes countdown
    decimal_arithmetic decimal_chain_sum dice fraction_simplification gcd gsm_symbolic
    intermediate_integration lcm leg_counting number_format polynomial_equations
    polynomial_multiplication power_function prime_factorization products puzzle24
    simple_equations simple_geometry simple_integration time_intervals
logic: acre aiw circuit_logic knights_knaves propositional_logic self_reference syllogism
    zebra_puzzles
grid: arc_1d arc_agi binary_matrix color_cube_rotation futoshiki game_of_life game_of_life_halting
    kakurasu largest_island manipulate_matrix mini_sudoku modulo_grid n_queens pool_matrix rearc
    rectangle_count rotate_matrix rotten_oranges spiral_matrix sudoku survo tsumego
graph: course_schedule family_relationships graph_color path_star quantum_lock shortest_path
search: boxnet jugs knight_swap maze needle_haystack palindrome_partitioning rubiks_cube rush_hour
    sokoban tower_of_hanoi word_ladder
sequential: ab bf binary_alternation codeio group_anagrams letter_counting list_functions
    mahjong_puzzle number_filtering number_sequence number_sorting palindrome_generation
    sentence_reordering spell_backward string_insertion string_manipulation string_splitting
    string_synthesis word_sequence_reversal word_sorting
"""
CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(generators.split())
    for name, generators in (
        line.split(": ") for line in _TABLE.replace("\n    ", " ").strip().split("\n")
    )
}
"""Generators of each category. `composite` is none of them: it mixes others."""

GENERATORS = tuple(sorted(name for names in CATEGORIES.values() for name in names))


def category_of(generator: str) -> str:
    """The category of a generator; KeyError for an unknown one."""
    return {name: category for category, names in CATEGORIES.items() for name in names}[generator]
