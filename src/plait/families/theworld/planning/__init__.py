"""What `plait plan` asks of theworld."""

from plait.families.theworld.planning.usual import assumed_batch, usual_rates

__all__ = ["assumed_batch", "usual_rates"]
