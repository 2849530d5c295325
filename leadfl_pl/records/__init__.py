"""What a run leaves behind: rounds, provenance, checkpoints, figures."""
