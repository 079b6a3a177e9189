"""Web pages and code → snippets → prompts → any OpenAI-compatible server → checked documents, journalled."""
