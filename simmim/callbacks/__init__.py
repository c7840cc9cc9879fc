"""What a run does beside training: checkpoints, signals, progress, throughput, pictures."""

from simmim.callbacks.amplitudes import Amplitudes
from simmim.callbacks.checkpoints import Checkpoints
from simmim.callbacks.continuation import Continuation
from simmim.callbacks.earlier_run import EarlierRun
from simmim.callbacks.guard import Guard
from simmim.callbacks.interruption import Interruption
from simmim.callbacks.learning_rate import LearningRate
from simmim.callbacks.nearest_neighbours import NearestNeighbours
from simmim.callbacks.progress import EvaluationProgress, RunProgress, report_progress
from simmim.callbacks.reconstructions import Reconstructions
from simmim.callbacks.stall import Guards, StallGuard, create_guards
from simmim.callbacks.throughput import Throughput, peak_memory_bytes
from simmim.callbacks.weight_average import WeightAverage, create_weight_average

__all__ = [
    "Amplitudes",
    "Checkpoints",
    "Continuation",
    "EarlierRun",
    "EvaluationProgress",
    "Guard",
    "Guards",
    "Interruption",
    "LearningRate",
    "NearestNeighbours",
    "Reconstructions",
    "RunProgress",
    "StallGuard",
    "Throughput",
    "WeightAverage",
    "create_guards",
    "create_weight_average",
    "peak_memory_bytes",
    "report_progress",
]
