"""From a data set on disk to samples, batches and stored poses."""
