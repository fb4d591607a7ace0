"""Name fine-grained human actions in video with a pose-enhanced vision-language model."""

__version__ = "0.1.0"
