"""Frozen dataclasses, one file per concern. No file is opened and no library of ours is imported here."""
