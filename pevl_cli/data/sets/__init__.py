"""Published data sets, each read from its official layout: a file a set."""
