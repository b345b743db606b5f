"""The files of a feature cache, by name: what lists and removes caches does without torch."""

KEY_NAME = "key.json"
INDEX_NAME = "index.json"
ROWS_NAME = "features.bin"
LOCK_NAME = "fill.lock"
