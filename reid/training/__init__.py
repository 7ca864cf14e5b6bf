"""Training: losses, schedules, the loop over an epoch, and a run that resumes to the same numbers."""

from reid.training.losses import batch_hard_triplet, identity_loss
from reid.training.run import train
from reid.training.schedule import learning_rate, ramp

__all__ = ["batch_hard_triplet", "identity_loss", "learning_rate", "ramp", "train"]
