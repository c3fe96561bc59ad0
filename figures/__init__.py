"""Figures for people: ranked images, resolved collisions, training curves. Drawn without pyplot."""
