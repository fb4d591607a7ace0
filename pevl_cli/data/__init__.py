"""Data sets on disk, and the samples, batches and stored poses made from them."""
