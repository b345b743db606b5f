"""The guide's commands, to be run from this directory."""
