"""The ground floor: training states, digests, checkpoints. It knows nothing of CLIP or THINGS."""
