"""Corpora on disk: readers of raw text, tokenisers, the ``.bin/.idx`` writer and reader, and per-document annotations.

Only ``indexed`` and ``annotations`` are needed while training; both import nothing but numpy.
"""
