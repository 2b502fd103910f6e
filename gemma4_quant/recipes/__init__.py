"""Deciding what every tensor becomes: types, floors, trained grids, padding; recipes as files."""
