"""The state of a run: its canonical tree and digest, its safe reading, random streams, numerics."""
