"""What the search page (`app.py`) does, without the page: searching, private images, and their HTML."""
