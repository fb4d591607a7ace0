"""Figures of checkpoints: measured, compared, reported, and the paper's ablations."""
