"""Training: settings, the model to start from, the loop, and what a run leaves in its folder."""
