"""Answers and poses as files: JSON and CSV records, pictures and films."""
