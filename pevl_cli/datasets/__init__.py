"""Data sets as one manifest form: a list of labelled clips with a split each."""
