"""A run as one file for a paper's supplement: made, and checked by whoever has it."""
