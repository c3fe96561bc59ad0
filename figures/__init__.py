"""Figures for people: ranked pictures, settled collisions, training curves. Drawn without pyplot."""
