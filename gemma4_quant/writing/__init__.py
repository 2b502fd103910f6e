"""Laying outputs out and writing them: whole or not at all, on all cores, in constant memory."""
