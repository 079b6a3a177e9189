"""The step, the loop, and what they write down."""
