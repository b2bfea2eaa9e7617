# SPDX-License-Identifier: Apache-2.0
"""What plugs into MONAI's trainer and evaluator."""

from __future__ import annotations

from common.engine.batch import PrepareRegistrationBatch, registered
from common.engine.checkpoints import BestModelHandler, ResumeHandler
from common.engine.evaluation_writer import EvaluationWriter
from common.engine.inferer import RegistrationInferer
from common.engine.pre_alignment import load_pre_alignment
from common.engine.progress import History, ProgressBar
from common.engine.registration_folder import RegistrationFolder
from common.engine.registration_writer import RegistrationWriter
from common.engine.start import prepare_workflow, restart_and_check
from common.engine.submission import SubmissionFolder, SubmissionWriter
from common.engine.tensorboard import TensorBoardHandler
from common.engine.training import TrainingHandlers
from common.engine.validation import ValidationHandler
from common.io.checkpoints import load_checkpoint, load_weights, save_atomically
from common.io.provenance import provenance

__all__ = [
    "BestModelHandler",
    "EvaluationWriter",
    "History",
    "PrepareRegistrationBatch",
    "ProgressBar",
    "RegistrationFolder",
    "RegistrationInferer",
    "RegistrationWriter",
    "ResumeHandler",
    "SubmissionFolder",
    "SubmissionWriter",
    "TensorBoardHandler",
    "TrainingHandlers",
    "ValidationHandler",
    "load_checkpoint",
    "load_pre_alignment",
    "load_weights",
    "prepare_workflow",
    "provenance",
    "registered",
    "restart_and_check",
    "save_atomically",
]
