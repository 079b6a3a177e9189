"""Other models that answer: transformers, and servers."""
