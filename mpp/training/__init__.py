"""The one loop, optimiser and schedule, checkpoints, journal."""
