# SPDX-License-Identifier: Apache-2.0
"""When a training is validated."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import Evaluator

from common.checks import InputError


class ValidationHandler:
    """Runs an evaluator every ``interval`` epochs and after the last one, so that no training ends without weights.

    MONAI's handler of this name leaves the epochs after the last multiple of ``interval`` without a validation.

    Args:
        validator: the evaluator.
        interval: epochs from one validation to the next.

    Raises:
        InputError: for an interval below 1.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if interval < 1:
            raise InputError(f"--val_interval is {interval}; give the number of epochs between validations, 1 or more.")
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before what looks at the evaluator's metrics."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate when the epoch is due or the last."""
        epoch = engine.state.epoch
        if epoch % self.interval == 0 or epoch == engine.state.max_epochs:
            self.validator.run(epoch)
