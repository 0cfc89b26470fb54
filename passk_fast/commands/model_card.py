"""The README.md of a converted folder: what was trained, how, and how to load it."""

from __future__ import annotations

from passk_fast import __version__
from passk_fast.config import RunConfig
from passk_fast.config.file import dump_toml

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- reinforcement-learning
- pass@k
- passk_fast
---

# {title}

Weights after step {step}, trained with passk_fast {version}: estimator `{estimator}`, k = {k},
{num_rollouts} responses per prompt. {start} The files hold {dtype}, and `config.json` says so:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

No evaluation is reported here; `passk-fast eval CONFIG --model path/to/this/folder` measures it.

## Configuration of the run

```toml
{config}```
"""


def model_card(config: RunConfig, step: int, dtype: str) -> str:
    """A model card in the form that model hubs read: a block of YAML, then Markdown."""
    start = (
        f"It started from `{config.model.path}`."
        if config.model.path
        else ("It started from random weights.")
    )
    return _CARD.format(
        title=f"Pass@k training, step {step}",
        step=step,
        version=__version__,
        estimator=config.algorithm.estimator,
        k=config.algorithm.k,
        num_rollouts=config.algorithm.num_rollouts,
        start=start,
        dtype=dtype,
        config=dump_toml(config),
    )
