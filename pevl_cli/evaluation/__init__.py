"""Measure checkpoints on data sets, compare results, write reports, run the paper's ablations."""
