"""Quantizing with error feedback: second moments of a calibration become encoders of a plan."""
