"""Galleries: images encoded once into a folder, then searched in two stages by everybody."""
