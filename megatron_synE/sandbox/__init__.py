"""Where programs that a model wrote are run, and nothing else is."""
