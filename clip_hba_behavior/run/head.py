"""What a run tells of itself before it trains."""

from collections.abc import Iterator
from pathlib import Path

from clip_hba_behavior.reproducibility.state.environment import device_model
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from clip_hba_behavior.training.trainer import Trainer, num_threads_here


def head_lines(trainer: Trainer, directory: Path) -> Iterator[str]:
    """Yield lines for the log: where it computes, what it trains on, how much, where it is written.

    Args:
        trainer: begun or restored.
        directory: the run's.
    """
    config, inputs, split = trainer.config, trainer.inputs, trainer.split
    yield f"Writing to {directory}"
    yield (
        f"Computing on {inputs.device}, {device_model(inputs.device)}, {num_threads_here(config)} threads, "
        f"in {config.arithmetic} arithmetic{'' if config.precision == 'float32' else f', {config.precision}'}"
    )
    yield (
        f"{len(split.train)} training images, {len(split.test)} test images, "
        f"{len(inputs.inference_rows())} held-out images; {trainer.num_steps()} steps per epoch"
    )
    if (where := inputs.features.describe()) is not None:
        yield where
    num_parameters = sum(each.numel() for each in trainer.parameters.values())
    yield f"{num_parameters:,} trainable parameters in {len(trainer.model.dora_layers())} DoRA layers"
    perturbed = [epoch for epoch in range(1, config.epochs + 1) if trainer.perturbation.kind_in(epoch) != "none"]
    if perturbed:
        which = f"epochs {perturbed[0]} to {perturbed[-1]}" if len(perturbed) > 1 else f"epoch {perturbed[0]}"
        cut = config.perturb_length - len(perturbed)
        beyond = f"; {cut} more would be beyond the last epoch, {config.epochs}" if cut > 0 else ""
        yield f"Perturbed by {config.perturb_type}: {which}{beyond}"
    metrics = trainer.metrics
    yield (
        f"{f'After epoch {trainer.epoch}' if trainer.epoch else 'Before training'}: "
        f"test loss {metrics['test_loss']:.4f}, behavioral RSA rho {metrics['behavioral_rsa_rho']:.4f} "
        f"(p {metrics['behavioral_rsa_p_value']:.3g})"
    )
    yield f"p: {P_VALUE_CAVEAT} A valid one: {command_line('alignment', directory)}"
