"""Greedy answers by transformers: `python ask.py FOLDER PROMPTS.jsonl [COUNT]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main(folder: str, prompts: str, count: str = "4") -> None:
    """Print the first prompts' ids with what the model answers."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for line in Path(prompts).read_text(encoding="utf-8").splitlines()[: int(count)]:
        row = json.loads(line)
        ids = tokenizer(row["prompt"], add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"  {row['id']}: {answer.strip()!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
