"""One run: its files, its assembly from configuration and data, and its life from start to end."""
