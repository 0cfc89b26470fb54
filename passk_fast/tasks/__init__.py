"""Prompts and verifiers: tasks by name or dotted path, generated prompts and data sets."""

from passk_fast.tasks.dataset import load_prompts
from passk_fast.tasks.order import PromptOrder
from passk_fast.tasks.protocol import GeneratedTask, Task
from passk_fast.tasks.registry import Verifier, answer_of, check_binary, find_task, part_of, verify
from passk_fast.tasks.splits import alphabet, fresh_solutions, test_prompts, train_prompts

__all__ = [
    "GeneratedTask",
    "PromptOrder",
    "Task",
    "Verifier",
    "alphabet",
    "answer_of",
    "check_binary",
    "find_task",
    "fresh_solutions",
    "load_prompts",
    "part_of",
    "test_prompts",
    "train_prompts",
    "verify",
]
