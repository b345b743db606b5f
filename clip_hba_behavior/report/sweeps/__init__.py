"""Pages of sweeps: what each shows, and what several show together."""
