"""What a run leaves behind: its directory, lock, ledger and quarantine, and what is asked of them."""
