"""Training: losses and their objective, schedules, the loop over an epoch, and runs that resume to the same bits."""

from reid.training.losses import batch_hard_triplet, identity_loss
from reid.training.schedule import learning_rate, ramp
from reid.training.training_run import train

__all__ = ["batch_hard_triplet", "identity_loss", "learning_rate", "ramp", "train"]
