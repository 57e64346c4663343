"""Checkpoint to traced graph, to variants, to a verified artifact."""
