"""Hugging Face Llama ⇄ our checkpoints and models."""
