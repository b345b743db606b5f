"""Images, targets and prompts: THINGS format, and the synthetic data set."""
