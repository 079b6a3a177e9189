"""Snippets of web pages and code → prompts → any OpenAI-compatible server → checked documents, in a journal that closes."""
