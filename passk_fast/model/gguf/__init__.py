"""GGUF files (llama.cpp): their metadata as a config.json and a Hugging Face tokenizer."""
