"""Images, targets and prompts: THINGS format, and the drawn stand-in."""
