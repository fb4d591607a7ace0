"""Training: settings, the initial model, the training loop, and the files of a run."""
