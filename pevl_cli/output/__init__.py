"""Answers and poses as files: JSON, CSV, images and videos."""
