"""What the search page (`app.py`) does, without the page: searching, private pictures, and their HTML."""
