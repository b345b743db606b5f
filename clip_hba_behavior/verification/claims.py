"""What an environment, a file and a table let be claimed at most: the tolerances of DESIGN's levels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clip_hba_behavior.reproducibility.record.judge import Claim, Tolerance
from clip_hba_behavior.run.environment import arithmetic_of, drift_from

# Order and random states are exact everywhere; a p-value has no tolerance of its own: its rho decides.
_EXACT = ("batch", "rng_state/torch", "rng_state/numpy", "rng_state/python", "epoch", "step_in_epoch")


def _tolerance(loss: float, rsa: float) -> Tolerance:
    losses = dict.fromkeys(("loss", "train_loss", "test_loss"), loss)
    return Tolerance(losses, {"behavioral_rsa_rho": rsa, "behavioral_rsa_p_value": 1.0}, _EXACT)


# Another machine repeats one epoch from an equal state this closely; what lacks part of the state, that closely.
ELSEWHERE = _tolerance(loss=1e-4, rsa=1e-4)
INCOMPLETE = _tolerance(loss=0.05, rsa=0.05)
ANOTHER_PROGRAM = replace(INCOMPLETE, sources=("results",))  # states and ledger are this program's own
_WITHIN = "losses within 5 % and RSA within 0.05 are called consistent"


def claim(origin: Mapping[str, Any], environment: Mapping[str, Any], is_complete: bool, own_table: bool) -> Claim:
    """Compare where a checkpoint was made with where this runs.

    Args:
        origin: the checkpoint's provenance.
        environment: `describe_environment` now.
        is_complete: whether the files hold the complete state before and after the epoch.
        own_table: whether the results that are compared were written by this program.
    """
    if not is_complete:
        reason = f"the files hold only part of the state: {_WITHIN}"
        return Claim("L2", (reason,), INCOMPLETE, is_complete=False)
    if not own_table:
        reason = f"another program wrote the results, which repeats them but for rounding: {_WITHIN}"
        is_here = "versions" in origin and not drift_from(origin, environment)
        return Claim("L2", (reason,), ANOTHER_PROGRAM if is_here else INCOMPLETE, is_complete=False)
    if "versions" not in origin:
        return Claim("L2", ("the checkpoint does not say where it was made",), ELSEWHERE)
    reasons = tuple(drift_from(origin, environment))
    if reasons:
        return Claim("L2", reasons, ELSEWHERE)
    if arithmetic_of(origin) != "native":
        return Claim("L3")
    host, now = origin.get("host"), environment["machine"]["host"]
    return Claim("L0") if host == now else Claim("L1", (f"host was {host or 'not recorded'}, is {now}",))
