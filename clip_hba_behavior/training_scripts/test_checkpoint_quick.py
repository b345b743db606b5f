"""Check that this machine continues a run bit for bit: `python test_checkpoint_quick.py`.

The same as `clip-hba verify quick`. It trains on the synthetic data set for some seconds, and needs no files.
"""

import sys

from clip_hba_behavior.cli.exit_codes import NO, YES, exit_code_of


def main() -> None:
    """Verify, print the result, and end with exit code 0 or 1."""
    from clip_hba_behavior.verification.quick import verify_quick

    sys.exit(YES if verify_quick().reproducible else NO)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
