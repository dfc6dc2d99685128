"""What a board says of itself in the files of its kernel."""
