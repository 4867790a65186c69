"""The Lightning side of training: import it only inside fit, as Lightning takes seconds to load."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from fluvial.objectives.objective import Batch
from fluvial.training.loop import Loop

CHATTERING = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")


class TrainingModule(pl.LightningModule):
    """What Lightning's loop calls; all the work is in `Loop`.

    Optimisation is manual, and losses never go through ``self.log``, which costs more than a small network's step.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Registered as submodules, so that Lightning finds the parameters.
        self.flow, self.objective = loop.flow, loop.objective
        self._loop = loop

    def configure_optimizers(self) -> Any:
        """The raw optimisers, one per parameter group."""
        return [optimizer.adam for optimizer in self._loop.optimizers]

    def on_train_start(self) -> None:
        """Start the clock, or go on from a checkpoint."""
        self._loop.begin()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Batches are made on the device."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimisation step."""
        if not self._loop.step(batch):
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Before Lightning takes the weights off the device."""
        self._loop.finish()


def run_lightning(loop: Loop, device: torch.device) -> None:
    """Let Lightning's Trainer drive the loop until it says that training is over."""
    accelerator = {"cuda": "gpu", "mps": "mps"}.get(device.type, "cpu")
    with quiet():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=[device.index] if device.type == "cuda" else 1,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            # One process, whatever the variables of a surrounding SLURM or torchrun job say.
            plugins=[LightningEnvironment()],
        )
        trainer.fit(TrainingModule(loop), train_dataloaders=loop.batches)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice and warnings kept from the user inside; everything as before afterwards."""
    levels = {name: logging.getLogger(name).level for name in _loggers()}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _loggers() -> list[str]:
    known = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("lightning", "lightning_utilities", "lightning_fabric")]
    return sorted({*CHATTERING, *known})
