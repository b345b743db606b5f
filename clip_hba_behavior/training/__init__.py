"""Training as a pure function of the training state."""
