"""Multi-label classification: several labels per image."""

from simmim.tasks.multilabel.task import Multilabel

TASK = Multilabel
