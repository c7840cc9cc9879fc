"""Lightning callbacks: checkpoints, stop signals, guards, progress, throughput and more."""

from simmim.training.callbacks.activation_stats import Amplitudes
from simmim.training.callbacks.checkpoint import Checkpoints
from simmim.training.callbacks.ema import WeightAverage, create_weight_average
from simmim.training.callbacks.learning_rate import LearningRate
from simmim.training.callbacks.nonfinite_guard import NonFiniteGuard
from simmim.training.callbacks.pending_step import PendingStep
from simmim.training.callbacks.preemption import Preemption
from simmim.training.callbacks.previous_run import PreviousRunBackup
from simmim.training.callbacks.progress import EvaluationProgress, RunProgress, report_progress
from simmim.training.callbacks.stall import Guards, StallGuard, create_guards
from simmim.training.callbacks.throughput import Throughput

__all__ = [
    "Amplitudes",
    "Checkpoints",
    "EvaluationProgress",
    "Guards",
    "LearningRate",
    "NonFiniteGuard",
    "PendingStep",
    "Preemption",
    "PreviousRunBackup",
    "RunProgress",
    "StallGuard",
    "Throughput",
    "WeightAverage",
    "create_guards",
    "create_weight_average",
    "report_progress",
]
