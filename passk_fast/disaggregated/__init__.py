"""The disaggregated layout: trainer ranks and rollout ranks in one torchrun job.

Each side has a default process group of its own, because Megatron and vLLM both take that for the
whole world; a `Bridge` joins them. Trainer rank 0 sends requests, rollout ranks reply.
"""
