"""Replay what a run recorded, and compare."""
