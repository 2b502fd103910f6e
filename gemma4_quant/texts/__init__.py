"""Texts for calibration and measurement: read from files, framed as the model's turns, cut into chunks."""
