"""Greedy answers of several models by transformers: `python ask.py PROMPTS.jsonl FOLDER ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

NUM_PROMPTS = 4


def answers(folder: str, prompts: list[list[dict[str, str]]]) -> list[str]:
    """What the model of a folder answers to each list of chat messages."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        texts.append(answer.strip())
    return texts


def main(prompts: str, *folders: str) -> None:
    """Print the first prompts' ids with the answers of all models, in the order of the folders."""
    logging.disable_progress_bar()
    lines = Path(prompts).read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    rows = [json.loads(line) for line in lines]
    columns = [answers(folder, [row["prompt"] for row in rows]) for folder in folders]
    for row, texts in zip(rows, zip(*columns, strict=True), strict=True):
        print(f"  {row['id']}: " + " -> ".join(map(repr, texts)))


if __name__ == "__main__":
    main(*sys.argv[1:])
