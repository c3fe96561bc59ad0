"""A small PAB drawn by ourselves: people with clothes, in places, doing things."""
