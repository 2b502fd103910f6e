"""Plots as SVG, drawn by small typed modules: scales, marks, labels, frames, and a module for each plot."""
